"""TorchScript, torch.compile and torch.export take every operator."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from . import comparison
from .builders import BUILDERS
from .cases import CASES

# A case of each operator, by its name.
TRACED = ("unused", "no_bias", "offset", "gelu", "interleaved")


def _arguments(op: str) -> dict[str, Any]:
    case = next(case for case in CASES if case.op == op and case.name in TRACED)
    return case.arguments(case.dtypes[0])


def _scripted(op: str) -> Any:
    """A TorchScript function of the operator's arguments that calls it."""
    arguments = comparison.operator(op)._schema.arguments
    parameters = ", ".join(f"{argument.name}: {argument.type}" for argument in arguments)
    names = ", ".join(argument.name for argument in arguments)
    source = f"def {op}({parameters}):\n    return torch.ops.lazyllm.{op}({names})\n"
    return getattr(torch.jit.CompilationUnit(source), op)


def _assert_does_the_same(function: Any, op: str) -> None:
    expected = comparison.run(op, _arguments(op))
    comparison.assert_same_bits(comparison.results(op, function, _arguments(op)), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("op", BUILDERS)
def test_scripts(op: str) -> None:
    scripted = _scripted(op)
    _assert_does_the_same(scripted, op)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    _assert_does_the_same(torch.jit.load(file), op)


@pytest.mark.parametrize("op", BUILDERS)
def test_compiles_in_one_graph(op: str) -> None:
    def function(*arguments: Any) -> Any:
        return getattr(torch.ops.lazyllm, op)(*arguments)

    torch.compiler.reset()  # it is one function to it, compiled a limited number of times
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    _assert_does_the_same(compiled, op)


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
