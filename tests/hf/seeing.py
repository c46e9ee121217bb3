"""Tiny models that see images, and inputs with as many image tokens as an image has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from helpers import _SHARED
from torch import Tensor, nn

from .tiny import left_padded

IMAGE = 7  # the token that stands where an image's embeddings go

_TEXT: dict[str, Any] = {**_SHARED, "num_hidden_layers": 4}
# What a language model of a type needs to have layers in which tokens can be dropped.
_OF_TEXT: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "cohere2": {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def _made(kind: str, text: str, vision: dict[str, Any], **fields: Any) -> nn.Module:
    """A model of a type around a language model of a type, with random weights."""
    config = transformers.AutoConfig.for_model(
        kind,
        text_config={**_TEXT, **_OF_TEXT.get(text, {}), "model_type": text},
        vision_config=vision,
        image_token_id=IMAGE,
        **fields,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model: nn.Module = transformers.AutoModelForImageTextToText.from_config(config).eval()
        for name, parameter in model.named_parameters():
            parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.requires_grad_(False)


def _vision(kind: str) -> dict[str, Any]:
    name = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
    return {**_VISION, "model_type": name.get(kind, f"{kind}_vision")}


@dataclass(frozen=True)
class Seeing:
    """How a model is made, and what an image is to it.

    Attributes:
        make: the model.
        tokens: how many stand for an image.
        image: shape of an image's pixels.
        sized: whether the image's size is an argument, too.
    """

    make: Callable[[], nn.Module]
    tokens: int
    image: tuple[int, ...] = (3, 16, 16)
    sized: bool = False


def _llava(text: str) -> Seeing:
    return Seeing(lambda: _made("llava", text, _vision("clip"), vision_feature_layer=-1), 16)


# An image as it is and in one tile, whose rows end with a token of their own.
_TILED: dict[str, Any] = {"tokens": 16 + 4 * 5, "image": (2, 3, 16, 16), "sized": True}
_ONE_TILE: dict[str, Any] = {"image_grid_pinpoints": [[16, 16]]}
_SQUARE: dict[str, Any] = {"image_size": [16, 16], "patch_size": [4, 4]}
_SAM: dict[str, Any] = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 256,
    "patch_size": 16,
    "mlp_dim": 32,
    "window_size": 4,
    "global_attn_indexes": [1],
}
_PERCEIVER: dict[str, Any] = {
    "hidden_size": 48,
    "resampler_n_latents": 4,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "num_key_value_heads": 1,
    "resampler_head_dim": 24,
}

SEEING: dict[str, Seeing] = {
    "llava": _llava("llama"),
    "llava around qwen2": _llava("qwen2"),
    "llava around gemma": _llava("gemma"),
    "llava around granite": _llava("granite"),
    "vipllava": Seeing(
        lambda: _made("vipllava", "llama", _vision("clip"), vision_feature_layers=[-1, -2]), 16
    ),
    "llava_next": Seeing(
        lambda: _made("llava_next", "mistral", _vision("clip"), **_ONE_TILE), **_TILED
    ),
    "llava_onevision": Seeing(
        lambda: _made("llava_onevision", "qwen2", _vision("siglip"), **_ONE_TILE), **_TILED
    ),
    "internvl": Seeing(
        lambda: _made(
            "internvl", "qwen2", {**_vision("internvl"), **_SQUARE}, downsample_ratio=0.5
        ),
        4,
    ),
    "mistral3": Seeing(
        lambda: _made(
            "mistral3", "mistral", {**_VISION, "model_type": "pixtral"}, spatial_merge_size=2
        ),
        4,
        sized=True,
    ),
    "idefics2": Seeing(
        lambda: _made("idefics2", "mistral", _vision("idefics2"), perceiver_config=_PERCEIVER),
        4,
        (1, 3, 16, 16),
    ),
    "idefics3": Seeing(
        lambda: _made("idefics3", "llama", _vision("idefics3"), scale_factor=2), 4, (1, 3, 16, 16)
    ),
    "smolvlm": Seeing(
        lambda: _made("smolvlm", "llama", _vision("smolvlm"), scale_factor=2), 4, (1, 3, 16, 16)
    ),
    "aya_vision": Seeing(
        lambda: _made("aya_vision", "cohere2", _vision("siglip"), downsample_factor=2), 4
    ),
    "got_ocr2": Seeing(lambda: _made("got_ocr2", "qwen2", _SAM), 16, (3, 256, 256)),
}


def seen(name: str, lengths: list[int]) -> dict[str, Tensor]:
    """Prompts of an image and so many words each, left-padded."""
    case = SEEING[name]
    generator = torch.Generator().manual_seed(4)
    prompts = [
        torch.cat(
            [
                torch.randint(8, 83, (2,), generator=generator),
                torch.full((case.tokens,), IMAGE),
                torch.randint(8, 83, (words,), generator=generator),
            ]
        )
        for words in lengths
    ]
    pixels = torch.randn(len(lengths), *case.image, generator=generator)
    sizes = {"image_sizes": torch.tensor([[16, 16]] * len(lengths))} if case.sized else {}
    return {**left_padded(prompts), "pixel_values": pixels, **sizes}
