"""What the operators of ``torch.ops.lazyllm`` return, without computing it: shapes and dtypes.

``torch.compile`` and ``torch.export`` call these in the operators' place. No result's shape depends
on data, and nothing here looks at a size, so every dimension may be dynamic.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["register"]


def token_importance(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    scale: float,
    softcap: float,
) -> Tensor:
    """float32 [K]."""
    return query.new_empty((key_slots.shape[0],), dtype=torch.float32)


def select_tokens(
    importance: Tensor,
    lengths: Tensor,
    candidates: Tensor,
    candidate_offsets: Tensor,
    targets: Tensor,
    out_offsets: Tensor,
    out_size: int,
    pool: int,
    protect_first: int,
    protect_last: int,
    cover_protected: bool,
) -> tuple[Tensor, Tensor]:
    """int64 [out_size], int64 [B]."""
    return candidates.new_empty((out_size,)), lengths.new_empty((lengths.shape[0],))


def aux_gather(source: Tensor, index: Tensor) -> Tensor:
    """[R, ...] of the source's dtype."""
    return source.new_empty((index.shape[0], *source.shape[1:]))


def aux_scatter_(destination: Tensor, index: Tensor, rows: Tensor) -> None:
    """Nothing: the destination is changed in place."""


def kv_append_(
    key_store: Tensor, value_store: Tensor, slots: Tensor, key: Tensor, value: Tensor
) -> None:
    """Nothing: the stores are changed in place."""


def lazy_attention(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_store: Tensor,
    value_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """[R, H, D] of the query's dtype, contiguous whatever the query's strides are."""
    return query.new_empty(query.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[R, O] of the rows' dtype."""
    return x.new_empty((x.shape[0], weight.shape[0]))


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """[R, D] of the dtype of `x`, contiguous whatever its strides are."""
    return x.new_empty(x.shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """[R, H, D] of the dtype of `x`, contiguous whatever its strides are."""
    return x.new_empty(x.shape)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """[R, I] of the dtype of `gate`, contiguous whatever its strides are."""
    return gate.new_empty(gate.shape)


def decoder_layer_(
    hidden: Tensor, key_store: Tensor, value_store: Tensor, *arguments: object
) -> Tensor:
    """[R, C] of the dtype of `hidden`, contiguous; the stores are changed in place."""
    return hidden.new_empty(hidden.shape)


def register() -> None:
    """Give every operator its fake. The operator library must have been loaded."""
    for fake in (
        token_importance,
        select_tokens,
        aux_gather,
        aux_scatter_,
        kv_append_,
        lazy_attention,
        linear,
        rms_norm,
        gated_activation,
        rotate,
        decoder_layer_,
    ):
        torch.library.register_fake(f"lazyllm::{fake.__name__}", fake)
