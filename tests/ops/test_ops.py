"""Every operator on every device and dtype over the table of cases, against its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lazyllm_ext import _C

from . import comparison
from .builders import Arguments
from .cases import CASES, Case


def _parameters(cases: list[Case]) -> list[Any]:
    """case x dtype x device, with the marks of the case and of the device."""
    parameters = []
    for case in cases:
        for dtype in case.dtypes:
            for device in comparison.devices():
                marks = comparison.marks_of(device)
                marks += [pytest.mark.smoke] if case.smoke else []
                name = f"{case.id}-{str(dtype).removeprefix('torch.')}-{device}"
                parameters.append(pytest.param(case, dtype, device, marks=marks, id=name))
    return parameters


@pytest.mark.parametrize("case, dtype, device", _parameters(CASES))
def test_equals_reference(case: Case, dtype: torch.dtype, device: str) -> None:
    got = comparison.run(case.op, case.arguments(dtype, device))
    if case.op not in comparison.COMPUTED:
        expected = comparison.run_reference(case.op, case.arguments(dtype))
        comparison.assert_same_bits(got, expected)
        return
    (result,) = got
    assert result.dtype == (torch.float32 if case.op == "token_importance" else dtype)
    assert result.is_contiguous()
    comparison.assert_computed(case.op, result, case.arguments(dtype))


@pytest.mark.parametrize("case, dtype, device", _parameters(CASES))
def test_two_runs_are_equal(case: Case, dtype: torch.dtype, device: str) -> None:
    first = comparison.run(case.op, case.arguments(dtype, device))
    comparison.assert_same_bits(comparison.run(case.op, case.arguments(dtype, device)), first)


# Operators whose rows have nothing to do with each other, and which arguments have a row for each.
BY_ROWS = {
    "linear": ("x",),
    "rms_norm": ("x",),
    "gated_activation": ("gate", "up"),
    "rotate": ("x", "cos", "sin"),
}


def _sequences(case: Case) -> int:
    """Number of sequences; 1 for the operators that know none."""
    counts = case.options.get("lengths", case.options.get("rows"))
    return len(counts) if isinstance(counts, list) else 1


@pytest.mark.parametrize(
    "case, dtype, device", _parameters([case for case in CASES if _sequences(case) > 1])
)
def test_a_sequence_alone_gives_the_same(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments(dtype, device)
    together = comparison.run(case.op, arguments)
    for b in range(_sequences(case)):
        alone, places = SPLITS[case.op](arguments, b)
        expected = [result[place] for result, place in zip(together, places, strict=True)]
        got = comparison.run(case.op, alone)
        if device == "cuda" and case.op in comparison.COMPUTED:
            # How many blocks share a sequence, and so the order of its sums, depends on the batch.
            comparison.assert_computed(case.op, expected[0], alone)
        else:
            comparison.assert_same_bits(got, expected)


@pytest.mark.parametrize(
    "case, dtype, device", _parameters([case for case in CASES if case.op in BY_ROWS])
)
def test_a_row_alone_gives_the_same(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments(dtype, device)
    together = comparison.run(case.op, arguments)[0]
    # Tiles take four rows and more, and sum in another order than vectors do.
    tiles = case.op == "linear" and dtype == torch.bfloat16 and _C.cpu_capability() == "amx"
    copies = 4 if tiles and device == "cpu" and len(together) > 3 else 1
    for row in range(len(together)):
        own = {name: arguments[name][row : row + 1] for name in BY_ROWS[case.op]}
        if copies > 1:
            own = {name: x.repeat(copies, 1) for name, x in own.items()}
        alone = comparison.run(case.op, {**arguments, **own})
        comparison.assert_same_bits([alone[0][:1]], [together[row : row + 1]])


@pytest.mark.parametrize(
    "case, dtype, device", _parameters([case for case in CASES if case.op == "rotate"])
)
def test_what_is_not_rotated_is_copied(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments(dtype, device)
    rest = slice(2 * case.options["half"], None)
    (got,) = comparison.run("rotate", arguments)
    comparison.assert_same_bits([got[..., rest]], [arguments["x"][..., rest].cpu()])


def split_attention(arguments: Arguments, b: int) -> tuple[Arguments, list[slice]]:
    """The arguments of sequence b alone; which places of the results of the batch are its own."""
    rows, row_ends = _part(arguments["query_offsets"], b)
    keys, key_ends = _part(arguments["key_offsets"], b)
    own = {
        "query": arguments["query"][rows],
        "query_index": arguments["query_index"][rows],
        "query_offsets": row_ends,
        "key_slots": arguments["key_slots"][keys],
        "key_index": arguments["key_index"][keys],
        "key_offsets": key_ends,
    }
    return {**arguments, **own}, [rows]


def split_importance(arguments: Arguments, b: int) -> tuple[Arguments, list[slice]]:
    """The same; the result has one element a key."""
    alone, _ = split_attention(arguments, b)
    return alone, [_part(arguments["key_offsets"], b)[0]]


def split_selection(arguments: Arguments, b: int) -> tuple[Arguments, list[slice]]:
    """The same for a selection: its tokens, and how many."""
    candidates, candidate_ends = _part(arguments["candidate_offsets"], b)
    out, out_ends = _part(arguments["out_offsets"], b)
    one = slice(b, b + 1)
    own = {
        "importance": arguments["importance"][one],
        "lengths": arguments["lengths"][one],
        "candidates": arguments["candidates"][candidates],
        "candidate_offsets": candidate_ends,
        "targets": arguments["targets"][one],
        "out_offsets": out_ends,
        "out_size": out.stop - out.start,
    }
    return {**arguments, **own}, [out, one]


SPLITS = {
    "token_importance": split_importance,
    "select_tokens": split_selection,
    "lazy_attention": split_attention,
}


def _part(offsets: Tensor, b: int) -> tuple[slice, Tensor]:
    """Where sequence b is in the flat tensor, and the offsets of a batch of it alone."""
    start, stop = offsets[b : b + 2].tolist()
    return slice(start, stop), torch.tensor([0, stop - start], device=offsets.device)
