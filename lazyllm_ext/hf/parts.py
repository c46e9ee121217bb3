"""Where the parts of a transformers model are, by its family's names for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .families import Family


@dataclass(frozen=True)
class Parts:
    """What a decoder is made of; the layers that the configuration counts, and their attentions.

    `positions` or `rotary` is None.
    """

    base: Any
    embed: Any
    positions: Any
    layers: list[Any]
    attentions: list[Any]
    norm: Any
    rotary: Any


def parts_of_model(model: Any, family: Family) -> Parts:
    base = getattr(model, family.base)
    layers = list(getattr(base, family.layers_name))[: model.config.num_hidden_layers]
    return Parts(
        base=base,
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
