"""What PyTorch's ``FlopCounterMode`` counts for the operators of ``torch.ops.lazyllm``.

As PyTorch has it, a multiply and an add are two operations, only products of matrices count, and
attention counts every pair of a row and a key of its sequence, seen or not; unused places do not
count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula

Arguments = Mapping[str, Any]  # of a call, by the names of the operator's schema


def token_importance(given: Arguments) -> int:
    """The logits of every pair."""
    heads, head_dim = given["query"].shape[1:]
    return 2 * heads * head_dim * _pairs(given)


def lazy_attention(given: Arguments) -> int:
    """The logits of every pair, and the sum over the values."""
    return 2 * token_importance(given)


def linear(given: Arguments) -> int:
    """One product, [R, C] by [C, O]."""
    return 2 * given["x"].shape[0] * given["weight"].numel()


def decoder_layer_(given: Arguments) -> int:
    """Its projections, and its attention."""
    weights = given["weights"]
    per_row = sum(2 * weight.numel() for weight in weights if weight.dim() == 2)
    width = weights[1].shape[0]  # H · D, what queries are projected to
    return per_row * given["hidden"].shape[0] + 4 * width * _pairs(given)


def nothing(given: Arguments) -> int:
    """No product: rows are moved, chosen, or changed one by one."""
    return 0


FORMULAS: dict[str, Callable[[Arguments], int]] = {
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


def _pairs(given: Arguments) -> int:
    """Σ_b R_b · K_b of the used rows and keys.

    Where tensors hold no numbers all places count as used, and sequences as equally long.
    """
    rows, keys, offsets = given["query_index"], given["key_slots"], given["key_offsets"]
    if isinstance(offsets, FakeTensor) or offsets.is_meta:
        return int(rows.shape[0] * keys.shape[0] // max(offsets.shape[0] - 1, 1))
    return int((_used(rows, given["query_offsets"]) * _used(keys, offsets)).sum())


def _used(places: Tensor, offsets: Tensor) -> Tensor:
    """[B] int64, how many places of each sequence are used (not -1)."""
    until = torch.cat([places.new_zeros(1), (places >= 0).cumsum(0)])
    return until[offsets].diff()


def register() -> None:
    """Give every operator its formula. The operator library must have been loaded."""
    for op in FORMULAS:
        _register(getattr(torch.ops.lazyllm, op), FORMULAS[op])


def _register(op: Any, formula: Callable[[Arguments], int]) -> None:
    names = [argument.name for argument in op.default._schema.arguments]
    of_tensors: Any = register_flop_formula

    def count(*arguments: Any, out_val: object, **named: Any) -> int:
        return formula({**dict(zip(names, arguments, strict=False)), **named})

    of_tensors(op, get_raw=True)(count)
