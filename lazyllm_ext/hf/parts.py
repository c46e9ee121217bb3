"""Where the parts of a transformers model are, by its family's names for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .families import Family


@dataclass(frozen=True)
class Parts:
    """What a decoder is made of; the layers that the configuration counts, and their attentions."""

    base: Any
    embed: Any
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
        layers=layers,
        attentions=[getattr(layer, family.attention_name) for layer in layers],
        norm=getattr(base, family.final_norm),
        rotary=base.rotary_emb,
    )
