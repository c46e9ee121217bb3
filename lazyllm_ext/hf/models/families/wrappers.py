"""Models that see images and hand what they saw, as embeddings, to a language model of a family.

Each calls its language model once per step with `inputs_embeds`, a mask of columns and positions of
one axis, and projects its hidden states itself; tests hold each against itself without LazyLLM.
"""

from __future__ import annotations

# config.model_type -> its class without "ForConditionalGeneration", and its language model's place.
WRAPPERS: dict[str, tuple[str, str]] = {
    "aya_vision": ("AyaVision", "model.language_model"),
    "got_ocr2": ("GotOcr2", "model.language_model"),
    "idefics2": ("Idefics2", "model.text_model"),
    "idefics3": ("Idefics3", "model.text_model"),
    "internvl": ("InternVL", "model.language_model"),
    "llava": ("Llava", "model.language_model"),
    "llava_next": ("LlavaNext", "model.language_model"),
    "llava_onevision": ("LlavaOnevision", "model.language_model"),
    "mistral3": ("Mistral3", "model.language_model"),
    "smolvlm": ("SmolVLM", "model.text_model"),
    "vipllava": ("VipLlava", "model.language_model"),
}
