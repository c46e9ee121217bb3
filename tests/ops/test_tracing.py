"""TorchScript, torch.compile and torch.export take every operator."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from . import comparison
from .cases import CASES


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
    return torch.ops.lazyllm.token_importance(
        query, query_index, query_offsets, key_store, key_slots, key_index, key_offsets,
        scale, softcap,
    )  # fmt: skip


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
    return torch.ops.lazyllm.select_tokens(
        importance, lengths, candidates, candidate_offsets, targets, out_offsets, out_size,
        pool, protect_first, protect_last, cover_protected,
    )  # fmt: skip


def aux_gather(source: Tensor, index: Tensor) -> Tensor:
    return torch.ops.lazyllm.aux_gather(source, index)


def aux_scatter_(destination: Tensor, index: Tensor, rows: Tensor) -> None:
    torch.ops.lazyllm.aux_scatter_(destination, index, rows)


def kv_append_(
    key_store: Tensor, value_store: Tensor, slots: Tensor, key: Tensor, value: Tensor
) -> None:
    torch.ops.lazyllm.kv_append_(key_store, value_store, slots, key, value)


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
    return torch.ops.lazyllm.lazy_attention(
        query, query_index, query_offsets, key_store, value_store, key_slots, key_index,
        key_offsets, scale, window, softcap,
    )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.lazyllm.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    return torch.ops.lazyllm.rms_norm(x, weight, eps, offset)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return torch.ops.lazyllm.gated_activation(gate, up, activation)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return torch.ops.lazyllm.rotate(x, cos, sin, interleaved)


# A case of each operator, by its name.
TRACED = ("unused", "no_bias", "offset", "gelu", "interleaved")
FUNCTIONS = [
    token_importance, select_tokens, aux_gather, aux_scatter_, kv_append_, lazy_attention, linear,
    rms_norm, gated_activation, rotate,
]  # fmt: skip


def _arguments(op: str) -> dict[str, Any]:
    case = next(case for case in CASES if case.op == op and case.name in TRACED)
    return case.arguments(case.dtypes[0])


def _assert_does_the_same(function: Any, op: str) -> None:
    expected = comparison.run(op, _arguments(op))
    comparison.assert_same_bits(comparison.results(op, function, _arguments(op)), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_scripts(function: Any) -> None:
    scripted = torch.jit.script(function)
    _assert_does_the_same(scripted, function.__name__)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    _assert_does_the_same(torch.jit.load(file), function.__name__)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_compiles_in_one_graph(function: Any) -> None:
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    _assert_does_the_same(compiled, function.__name__)


class _ScoreAndSelect(torch.nn.Module):
    """A boundary's choice: its shapes follow from the number of keys."""

    def forward(
        self,
        query: Tensor,
        query_index: Tensor,
        query_offsets: Tensor,
        key_store: Tensor,
        key_slots: Tensor,
        key_index: Tensor,
        key_offsets: Tensor,
        targets: Tensor,
    ) -> list[Tensor]:
        importance = torch.ops.lazyllm.token_importance(
            query, query_index, query_offsets, key_store, key_slots, key_index, key_offsets,
            0.125, 0.0,
        )  # fmt: skip
        lengths = key_offsets[1:]
        index, selected = torch.ops.lazyllm.select_tokens(
            importance[None], lengths, key_index, key_offsets, targets, key_offsets,
            key_slots.shape[0], 3, 0, 0, True,
        )  # fmt: skip
        return [importance, index, selected]


def _boundary_arguments(num_keys: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(num_keys)
    index = torch.arange(num_keys)
    return (
        torch.randn((2, 4, 64), generator=generator),
        index[-2:].clone(),
        torch.tensor([0, 2]),
        torch.randn((num_keys, 2, 64), generator=generator),
        torch.randperm(num_keys, generator=generator),
        index,
        torch.tensor([0, num_keys]),
        torch.tensor([num_keys // 3]),
    )


def test_exports_with_a_dynamic_length() -> None:
    num_keys = torch.export.Dim("num_keys", min=8, max=4096)
    shapes = (None, None, None, {0: num_keys}, {0: num_keys}, {0: num_keys}, None, None)
    program = torch.export.export(
        _ScoreAndSelect(), _boundary_arguments(40), dynamic_shapes=(*shapes,)
    ).module()
    for num_keys in (9, 40, 333):
        arguments = _boundary_arguments(num_keys)
        comparison.assert_same_bits(program(*arguments), _ScoreAndSelect()(*arguments))
