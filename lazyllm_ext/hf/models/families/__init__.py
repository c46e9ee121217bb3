"""The model families, by `config.model_type`. docs/adding-a-family.md says how to add one."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from lazyllm_ext.errors import NotSupportedError

from .family import Family
from .reasons import REASONS
from .table import FAMILIES
from .wrappers import WRAPPERS, wrapper_class

SUPPORTED = tuple(sorted(FAMILIES))
_TYPES = ", ".join(SUPPORTED)


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        TypeError: not a transformers model.
        NotSupportedError: a model of another family, or of another class than its causal LM.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(f"model: expected a transformers model, got {type(model).__name__}")
    got = type(model).__name__
    if got == "OptimizedModule":
        raise NotSupportedError(
            "model: expected the model itself, got one that torch.compile returned"
        )
    kind = getattr(model.config, "model_type", None)
    if kind not in FAMILIES:
        reason = REASONS.get(kind or "", "its layers are not described")
        if getattr(model.config, "is_encoder_decoder", False):
            reason = "an encoder-decoder"
        raise NotSupportedError(
            f"model: expected a model of type {_TYPES}, got {kind!r} ({got}): {reason}"
        )
    family = _family(kind)
    if type(model) is not family.causal_lm:
        hint = ""
        if hasattr(model, "get_base_model"):
            hint = "; apply it to model.get_base_model()"
        raise NotSupportedError(f"model: expected {family.causal_lm.__name__}, got {got}{hint}")
    return family


def text_model_of(model: Any) -> tuple[Family, str] | None:
    """The family and the place of the language model within a model that sees images.

    None: not a model of `WRAPPERS`.

    Raises:
        NotSupportedError: its language model is of another family, or it is of another class.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in WRAPPERS:
        return None
    expected, path = wrapper_class(kind), WRAPPERS[kind][2]
    if type(model) is not expected:
        raise NotSupportedError(f"model: expected {expected.__name__}, got {type(model).__name__}")
    text: Any = model.get_submodule(path)
    within = text.config.model_type
    if within not in FAMILIES:
        reason = REASONS.get(within, "its layers are not described")
        raise NotSupportedError(
            f"model: {path}: expected a model of type {_TYPES}, got {within!r}: {reason}"
        )
    return _family(within), path


@cache
def _family(kind: str) -> Family:
    """Made when asked for: each brings in its model's code."""
    return FAMILIES[kind]()


__all__ = ["REASONS", "SUPPORTED", "WRAPPERS", "Family", "family_of", "text_model_of"]
