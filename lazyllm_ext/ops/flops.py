"""What PyTorch's ``FlopCounterMode`` counts for the operators of ``torch.ops.lazyllm``.

As PyTorch has it, a multiply and an add are two operations, only products of matrices count, and
attention counts every pair of a row and a key of its sequence, seen or not; unused places do not
count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula


def token_importance(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    *others: object,
    out_val: object,
) -> int:
    """The logits of every pair."""
    heads, head_dim = query.shape[1:]
    return 2 * heads * head_dim * _pairs(query_index, query_offsets, key_slots, key_offsets)


def lazy_attention(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_store: Tensor,
    value_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    *others: object,
    out_val: object,
) -> int:
    """The logits of every pair, and the sum over the values."""
    heads, head_dim = query.shape[1:]
    return 4 * heads * head_dim * _pairs(query_index, query_offsets, key_slots, key_offsets)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out_val: object) -> int:
    """One product, [R, C] by [C, O]."""
    return 2 * x.shape[0] * weight.shape[0] * weight.shape[1]


def decoder_layer_(
    hidden: Tensor,
    key_store: Tensor,
    value_store: Tensor,
    slots: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    cos: Tensor,
    sin: Tensor,
    weights: list[Tensor],
    *others: object,
    out_val: object,
) -> int:
    """Its projections, and its attention."""
    per_row = sum(2 * weight.shape[0] * weight.shape[1] for weight in weights if weight.dim() == 2)
    width = weights[1].shape[0]  # H · D, what queries are projected to
    pairs = _pairs(query_index, query_offsets, key_slots, key_offsets)
    return per_row * hidden.shape[0] + 4 * width * pairs


def nothing(*arguments: object, out_val: object) -> int:
    """No product: rows are moved, chosen, or changed one by one."""
    return 0


FORMULAS: dict[str, Callable[..., int]] = {
    "token_importance": token_importance,
    "select_tokens": nothing,
    "aux_gather": nothing,
    "aux_scatter_": nothing,
    "kv_append_": nothing,
    "lazy_attention": lazy_attention,
    "linear": linear,
    "rms_norm": nothing,
    "rotate": nothing,
    "gated_activation": nothing,
    "decoder_layer_": decoder_layer_,
}


def _pairs(
    query_index: Tensor, query_offsets: Tensor, key_slots: Tensor, key_offsets: Tensor
) -> int:
    """Σ_b R_b · K_b of the used rows and keys.

    Where tensors hold no numbers all places count as used, and sequences as equally long.
    """
    if isinstance(key_offsets, FakeTensor) or key_offsets.is_meta:
        return query_index.shape[0] * key_slots.shape[0] // max(key_offsets.shape[0] - 1, 1)
    return int((_used(query_index, query_offsets) * _used(key_slots, key_offsets)).sum())


def _used(places: Tensor, offsets: Tensor) -> Tensor:
    """[B] int64, how many places of each sequence are used (not -1)."""
    until = torch.cat([places.new_zeros(1), (places >= 0).cumsum(0)])
    return until[offsets].diff()


def register() -> None:
    """Give every operator its formula. The operator library must have been loaded."""
    of_tensors: Any = register_flop_formula
    for op, formula in FORMULAS.items():
        of_tensors(getattr(torch.ops.lazyllm, op), get_raw=True)(formula)
