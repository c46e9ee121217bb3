"""What PyTorch's FLOP counter says of the operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_llama
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import lazyllm_ext
from lazyllm_ext import ops
from lazyllm_ext.ops.flops import FORMULAS

from .test_registry import OPERATORS


def _count(run: Any, *arguments: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*arguments)
    return int(counter.get_total_flops())


def test_every_operator_has_a_formula() -> None:
    assert sorted(FORMULAS) == OPERATORS


def _attention_of(rows: list[int], keys: list[int]) -> tuple[Any, ...]:
    """Of sequences of so many rows and keys; 4 heads of 8, 2 of keys; one unused place of each."""
    query_index = torch.cat([torch.arange(count) for count in rows])
    query_index[0] = -1
    slots = torch.arange(sum(keys))
    slots[-1] = -1
    store = torch.randn(sum(keys), 2, 8)
    offsets = [torch.tensor([0, *counts]).cumsum(0) for counts in (rows, keys)]
    index = torch.cat([torch.arange(count) for count in keys])
    return torch.randn(sum(rows), 4, 8), query_index, offsets[0], store, slots, index, offsets[1]


def _attend(*given: Tensor) -> Tensor:
    query, query_index, query_offsets, store, *keys = given
    return ops.lazy_attention(query, query_index, query_offsets, store, store, *keys)


def test_of_single_operators() -> None:
    """Pairs of one sequence only; unused rows and keys make none."""
    given = _attention_of([3, 2], [5, 4])
    pairs = 2 * 5 + 2 * 3
    assert _count(ops.token_importance, *given) == 2 * 4 * 8 * pairs
    assert _count(_attend, *given) == 4 * 4 * 8 * pairs
    assert _count(ops.linear, torch.randn(3, 6), torch.randn(5, 6)) == 2 * 3 * 5 * 6
    assert _count(ops.rms_norm, torch.randn(3, 6), torch.randn(6), 1e-6, 0.0) == 0


def test_without_numbers() -> None:
    """Sequences count as equally long, and every place as used."""
    mode = FakeTensorMode()
    given = [mode.from_tensor(tensor) for tensor in _attention_of([3, 3], [5, 5])]
    with mode:
        assert _count(_attend, *given) == 4 * 4 * 8 * 2 * 15


@pytest.mark.parametrize("batch", [1, 3])
def test_of_a_model(batch: int) -> None:
    """Nothing dropped, all logits asked: as many as transformers' eager attention has."""
    model: Any = tiny_llama(attn_implementation="eager")
    ids = torch.randint(3, 83, (batch, 13))
    expected = _count(model, ids)
    lazyllm_ext.apply(model, "dense")
    assert _count(model, ids) == expected
