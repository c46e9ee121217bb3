"""Where the parts of a transformers model are, by its family's names for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .families import Family, family_of, text_model_of


@dataclass(frozen=True)
class Language:
    """What LazyLLM runs of a model: all of it, or the language model within one that sees images.

    Attributes:
        family: of the language model.
        config: the language model's own.
        base: its embedding, layers and final norm.
        where: the place of `base`, for messages.
        whole: whether the output projection belongs to it; otherwise the model around applies it.
    """

    family: Family
    config: Any
    base: Any
    where: str
    whole: bool


def language_of(model: Any) -> Language:
    """The language model of a model.

    Raises:
        TypeError: not a transformers model.
        NotSupportedError: a model of another family, or of a class that is not described.
    """
    within = text_model_of(model)
    if within is None:
        family = family_of(model)
        base, where = getattr(model, family.base, None), f"model.{family.base}"
        return Language(family, model.config, base, where, whole=True)
    family, path = within
    base = model.get_submodule(path)
    return Language(family, base.config, base, f"model.{path}", whole=False)


@dataclass(frozen=True)
class Parts:
    """What a decoder is made of; the layers that the configuration counts, and their attentions.

    `positions` or `rotary` is None.
    """

    embed: Any
    positions: Any
    layers: list[Any]
    attentions: list[Any]
    norm: Any
    rotary: Any


def parts_of(language: Language) -> Parts:
    base, family = language.base, language.family
    layers = list(getattr(base, family.layers_name))[: language.config.num_hidden_layers]
    return Parts(
        embed=getattr(base, family.embed_name),
        positions=getattr(base, family.positions_name) if family.positions_name else None,
        layers=layers,
        attentions=[getattr(layer, family.attention_name) for layer in layers],
        norm=getattr(base, family.final_norm),
        rotary=None if family.rotary is None else base.rotary_emb,
    )


def head_dim(attention: Any) -> int:
    """Size of a head of an attention module."""
    size: int = attention.head_size if hasattr(attention, "head_size") else attention.head_dim
    return size
