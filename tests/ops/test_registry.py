"""Every operator has all of its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lazyllm_ext.ops
from lazyllm_ext import _C
from lazyllm_ext.ops import reference

from . import comparison
from .cases import CASES, Case

OPERATORS = sorted(
    name.removeprefix("lazyllm::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("lazyllm::")
)
# One plain case of each dtype kind an operator takes, and one with unused places.
CHECKED = [
    case
    for case in CASES
    if case.name in ("unused", "int64", "strided", "no_bias", "offset", "interleaved")
]


def test_there_are_operators() -> None:
    assert sorted(reference.__all__) == OPERATORS
    assert sorted(lazyllm_ext.ops.__all__) == sorted([*OPERATORS, "reference"])


# Made of the others: it has no kernel on CUDA, and tests of its own instead of cases.
COMPOSED = "decoder_layer_"
WITH_CASES = [op for op in OPERATORS if op != COMPOSED]


@pytest.mark.parametrize("op", OPERATORS)
def test_has_all_parts(op: str) -> None:
    def registered(key: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"lazyllm::{op}", key)

    assert registered("CPU")
    assert registered("CUDA") == (op != COMPOSED and bool(_C.cuda_architectures()))
    assert registered("Meta"), "no fake"
    assert callable(getattr(reference, op))
    assert getattr(lazyllm_ext.ops, op).__doc__
    for smoke in (True, False) if op != COMPOSED else ():
        assert any(case.op == op and case.smoke == smoke for case in CASES)


@pytest.mark.parametrize("op", OPERATORS)
def test_names_are_those_of_the_schema(op: str) -> None:
    names = [argument.name for argument in comparison.operator(op)._schema.arguments]
    for case in CASES:
        if case.op == op:
            assert list(case.arguments(case.dtypes[0])) == names
            break
    code = getattr(reference, op).__code__
    assert list(code.co_varnames[: code.co_argcount]) == names
    code = getattr(lazyllm_ext.ops, op).__code__
    assert list(code.co_varnames[: code.co_argcount]) == names


@pytest.mark.parametrize("op", WITH_CASES)
@pytest.mark.parametrize("device", comparison.device_parameters())
def test_refuses_gradients(op: str, device: str) -> None:
    case = next(case for case in CASES if case.op == op and case.smoke)
    for argument, value in case.arguments(case.dtypes[0]).items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        arguments = case.arguments(case.dtypes[0], device)
        # Not the tensor that is changed: PyTorch has its own rules for leaves.
        arguments[argument] = arguments[argument].detach().requires_grad_()
        sentence = f"^lazyllm::{op}: inference only: {argument} requires grad"
        with pytest.raises(RuntimeError, match=sentence):
            comparison.operator(op)(*arguments.values())
        with pytest.raises(RuntimeError, match=sentence):
            getattr(lazyllm_ext.ops, op)(**arguments)
        with torch.no_grad():
            comparison.operator(op)(*arguments.values())


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.id)
@pytest.mark.parametrize("device", comparison.device_parameters())
def test_opcheck(case: Case, device: str) -> None:
    arguments = case.arguments(case.dtypes[0], device)
    torch.library.opcheck(comparison.operator(case.op), tuple(arguments.values()))
