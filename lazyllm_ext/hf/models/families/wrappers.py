"""Models that see images and hand what they saw, as embeddings, to a language model of a family.

Each calls its language model once per step with `inputs_embeds`, a mask of columns and positions of
one axis, and projects its hidden states itself; tests hold each against itself without LazyLLM.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

# config.model_type -> its folder in transformers.models, its class, and its language model's place.
WRAPPERS: dict[str, tuple[str, str, str]] = {
    "aya_vision": ("aya_vision", "AyaVisionForConditionalGeneration", "model.language_model"),
    "got_ocr2": ("got_ocr2", "GotOcr2ForConditionalGeneration", "model.language_model"),
    "idefics2": ("idefics2", "Idefics2ForConditionalGeneration", "model.text_model"),
    "idefics3": ("idefics3", "Idefics3ForConditionalGeneration", "model.text_model"),
    "internvl": ("internvl", "InternVLForConditionalGeneration", "model.language_model"),
    "llava": ("llava", "LlavaForConditionalGeneration", "model.language_model"),
    "llava_next": ("llava_next", "LlavaNextForConditionalGeneration", "model.language_model"),
    "llava_onevision": (
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "model.language_model",
    ),
    "mistral3": ("mistral3", "Mistral3ForConditionalGeneration", "model.language_model"),
    "smolvlm": ("smolvlm", "SmolVLMForConditionalGeneration", "model.text_model"),
    "vipllava": ("vipllava", "VipLlavaForConditionalGeneration", "model.language_model"),
}


def wrapper_class(kind: str) -> type[nn.Module]:
    """The class of a type of `WRAPPERS`."""
    folder, name, _ = WRAPPERS[kind]
    found: type[nn.Module] = getattr(
        import_module(f"transformers.models.{folder}.modeling_{folder}"), name
    )
    return found
