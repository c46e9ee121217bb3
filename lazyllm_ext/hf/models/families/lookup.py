"""Which family a model is of, and where its language model is."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from lazyllm_ext.errors import refusal

from .family import Family
from .reasons import REASONS
from .table import FAMILIES
from .wrappers import WRAPPERS

SUPPORTED = tuple(sorted(FAMILIES))
_TYPES = ", ".join(SUPPORTED)
_NOT_DESCRIBED = "its layers are not described"


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
        raise refusal("model", "the model itself", "one that torch.compile returned")
    kind = getattr(model.config, "model_type", None)
    if kind not in FAMILIES:
        reason = REASONS.get(kind or "", _NOT_DESCRIBED)
        if getattr(model.config, "is_encoder_decoder", False):
            reason = "an encoder-decoder"
        raise refusal("model", f"a model of type {_TYPES}", f"{kind!r} ({got}): {reason}")
    family = _family(kind)
    if type(model) is not family.causal_lm:
        hint = ""
        if hasattr(model, "get_base_model"):
            hint = "; apply it to model.get_base_model()"
        raise refusal("model", family.causal_lm.__name__, f"{got}{hint}")
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
    prefix, path = WRAPPERS[kind]
    module = import_module(f"transformers.models.{kind}.modeling_{kind}")
    expected = getattr(module, f"{prefix}ForConditionalGeneration")
    if type(model) is not expected:
        raise refusal("model", expected.__name__, type(model).__name__)
    text: Any = model.get_submodule(path)
    within = text.config.model_type
    if within not in FAMILIES:
        reason = REASONS.get(within, _NOT_DESCRIBED)
        raise refusal(f"model: {path}", f"a model of type {_TYPES}", f"{within!r}: {reason}")
    return _family(within), path


@cache
def _family(kind: str) -> Family:
    """Made when asked for: each brings in its model's code."""
    return FAMILIES[kind](kind)
