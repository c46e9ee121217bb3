"""The model families, by `config.model_type`. docs/adding-a-family.md says how to add one."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from .family import Family
from .reasons import REASONS
from .table import FAMILIES

SUPPORTED = tuple(sorted(FAMILIES))


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
    if kind not in FAMILIES:
        reason = REASONS.get(kind or "", "its layers are not described")
        if getattr(model.config, "is_encoder_decoder", False):
            reason = "an encoder-decoder"
        raise ValueError(
            f"model: expected a model of type {', '.join(SUPPORTED)}, got {kind!r} ({got}): "
            f"{reason}"
        )
    family = _family(kind)
    if type(model) is not family.causal_lm:
        hint = ""
        if hasattr(model, "get_base_model"):
            hint = "; apply it to model.get_base_model()"
        raise ValueError(f"model: expected {family.causal_lm.__name__}, got {got}{hint}")
    return family


@cache
def _family(kind: str) -> Family:
    """Made when asked for: each brings in its model's code."""
    return FAMILIES[kind]()


__all__ = ["REASONS", "SUPPORTED", "Family", "family_of"]
