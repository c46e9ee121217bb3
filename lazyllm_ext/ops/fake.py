"""What the operators of ``torch.ops.lazyllm`` return, without computing it: shapes and dtypes.

``torch.compile`` and ``torch.export`` call these in the operators' place. No result's shape depends
on data, and nothing here looks at a size, so every dimension may be dynamic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def token_importance(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_store: Tensor,
    key_slots: Tensor,
    *others: object,
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
    *others: object,
) -> tuple[Tensor, Tensor]:
    """int64 [out_size], int64 [B]."""
    return candidates.new_empty((out_size,)), lengths.new_empty((lengths.shape[0],))


def aux_gather(source: Tensor, index: Tensor) -> Tensor:
    """[R, ...] of the source's dtype."""
    return source.new_empty((index.shape[0], *source.shape[1:]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[R, O] of the rows' dtype."""
    return x.new_empty((x.shape[0], weight.shape[0]))


def like_the_first(first: Tensor, *others: object) -> Tensor:
    """Shape and dtype of the first argument, contiguous whatever its strides are."""
    return first.new_empty(first.shape)


def nothing(*arguments: object) -> None:
    """Nothing: the stores are changed in place."""


FAKES: dict[str, Callable[..., Any]] = {
    "token_importance": token_importance,
    "select_tokens": select_tokens,
    "aux_gather": aux_gather,
    "aux_scatter_": nothing,
    "kv_append_": nothing,
    "lazy_attention": like_the_first,
    "linear": linear,
    "rms_norm": like_the_first,
    "rotate": like_the_first,
    "gated_activation": like_the_first,
    "decoder_layer_": like_the_first,
}


def register() -> None:
    """Give every operator its fake. The operator library must have been loaded."""
    for op, fake in FAKES.items():
        torch.library.register_fake(f"lazyllm::{op}", fake)
