"""Where the parts of a transformers model are, by its family's names for them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from .families import Family, family_of, text_model_of


@dataclass(frozen=True)
class Language:
    """What LazyLLM runs: all of a model, or the language model within one that sees images."""

    family: Family
    config: Any
    base: Any  # its embedding, layers and final norm
    where: str  # the place of `base`, for messages
    whole: bool  # has the output projection; otherwise the model around applies it


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
    """What a decoder is made of; the layers that the configuration counts, and their attentions."""

    embed: Any
    positions: Any  # this one or `rotary` is None
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
        # None in a layer of another class, which is refused by its class.
        attentions=[getattr(layer, family.attention_name, None) for layer in layers],
        norm=getattr(base, family.final_norm),
        rotary=None if family.rotary is None else base.rotary_emb,
    )


@dataclass(frozen=True)
class Piece:
    """A module that the decoder stands in for: what it holds is used, and itself is not called."""

    where: str  # its place, for messages
    module: Any
    expected: type[nn.Module]  # the class that it must be of
    children: Set[str] = frozenset()  # the modules that it must consist of, if it does of any
    called: bool = False  # whether it is called after all where it has hooks


def pieces_of(language: Language) -> Iterator[Piece]:
    """Every piece of a model, an owner before what it owns."""
    family, base, where = language.family, language.base, language.where

    def norms(of: str, owner: Any, names: Set[str]) -> Iterator[Piece]:
        for name in names:
            yield Piece(f"{of}.{name}", getattr(owner, name), family.norm, called=True)

    def dropouts(of: str, owner: Any) -> Iterator[Piece]:
        for name, child in owner.named_children():
            if type(child) is nn.Dropout:  # which does nothing in inference mode
                yield Piece(f"{of}.{name}", child, nn.Dropout)

    yield Piece(where, base, family.base_model, family.base_children())
    parts = parts_of(language)
    yield from norms(where, base, {family.final_norm})
    yield from dropouts(where, base)
    if family.rotary is not None:
        yield Piece(f"{where}.rotary_emb", parts.rotary, family.rotary)
    if parts.positions is not None:
        yield Piece(f"{where}.{family.positions_name}", parts.positions, nn.Embedding)
    for number, (layer, attention) in enumerate(zip(parts.layers, parts.attentions, strict=True)):
        of_layer = f"{where}.{family.layers_name}[{number}]"
        own = family.layer_norms(layer)
        children = {family.attention_name, family.mlp_name, *own}
        yield Piece(of_layer, layer, family.decoder_layer, children)
        yield from norms(of_layer, layer, own)
        yield from dropouts(of_layer, layer)
        of_attention = f"{of_layer}.{family.attention_name}"
        children = family.attention_children(attention)
        yield Piece(of_attention, attention, family.attention, children)
        yield from norms(of_attention, attention, family.attention_norms(attention))
        yield from dropouts(of_attention, attention)


def head_dim(attention: Any) -> int:
    """Size of a head of an attention module."""
    size: int = attention.head_size if hasattr(attention, "head_size") else attention.head_dim
    return size
