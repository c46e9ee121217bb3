"""The model families, by `config.model_type`. docs/adding-a-family.md says how to add one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from .family import Family

# model_type -> module of this package. Imported when asked for: each brings in its model's code.
_MODULES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}

SUPPORTED = tuple(_MODULES)

_LISTED = ", ".join(SUPPORTED)


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        TypeError: not a transformers model.
        ValueError: a model of another family, or of a class that is not the family's causal LM.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model: expected a transformers model, got {type(model).__name__}")
    got = type(model).__name__
    if got == "OptimizedModule":
        raise ValueError("model: expected the model itself, got one that torch.compile returned")
    kind = getattr(model.config, "model_type", None)
    if kind not in _MODULES:
        hint = ""
        if getattr(model.config, "is_encoder_decoder", False):
            hint = ": an encoder-decoder"
        elif kind == "gemma3":
            hint = ": with images; load its text as Gemma3ForCausalLM"
        raise ValueError(f"model: expected a model of type {_LISTED}, got {kind!r} ({got}){hint}")
    family: Family = import_module(f".{_MODULES[kind]}", __name__).FAMILY
    if type(model) is not family.causal_lm:
        hint = ""
        if hasattr(model, "get_base_model"):
            hint = "; apply it to model.get_base_model()"
        raise ValueError(f"model: expected {family.causal_lm.__name__}, got {got}{hint}")
    return family


__all__ = ["SUPPORTED", "Family", "family_of"]
