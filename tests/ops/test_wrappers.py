"""What the Python surface adds to the operators: defaults, spellings, exceptions, loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lazyllm_ext import ops
from lazyllm_ext.ops import loading

from . import comparison
from .builders import BUILDERS, Arguments

ATTENTION = {"rows": [4], "keys": [20], "heads": (4, 2), "dim": 16}


def _arguments(op: str, **options: Any) -> Arguments:
    return BUILDERS[op](torch.Generator().manual_seed(0), torch.float32, **options)


@pytest.mark.parametrize("op", ["token_importance", "lazy_attention"])
def test_attention_defaults(op: str) -> None:
    arguments = _arguments(op, **ATTENTION)
    expected = comparison.run(op, arguments)
    for name in ("scale", "softcap", "window"):
        arguments.pop(name, None)
    arguments["query_offsets"] = arguments["key_offsets"] = None
    comparison.assert_same_bits([getattr(ops, op)(**arguments)], expected)


def test_select_defaults() -> None:
    arguments = _arguments("select_tokens", lengths=[9, 12], candidates=[9, 12], targets=[3, 4])
    (expected, expected_counts) = comparison.run("select_tokens", arguments)
    index, counts = ops.select_tokens(
        arguments["importance"], arguments["lengths"], targets=arguments["targets"]
    )
    assert index.shape == (2 * arguments["importance"].shape[1],)
    assert index[index >= 0].tolist() == expected.tolist()
    assert counts.tolist() == expected_counts.tolist()


def test_select_room_of_its_own() -> None:
    arguments = _arguments("select_tokens", lengths=[20], candidates=[15], targets=[6])
    expected = comparison.run("select_tokens", arguments)
    del arguments["out_size"]
    arguments["candidate_offsets"] = None
    comparison.assert_same_bits(list(ops.select_tokens(**arguments)), expected)


@pytest.mark.parametrize(
    "keep, length, target", [(0.3, 10, 3), (0.3, 11, 4), (1.0, 7, 7), (0.07, 100, 7), (1e-12, 5, 0)]
)
def test_keep_is_a_part_of_all_tokens(keep: float, length: int, target: int) -> None:
    importance, lengths = torch.rand((1, length)), torch.tensor([length])
    by_keep = ops.select_tokens(importance, lengths, keep=keep, cover_protected=False)
    by_target = ops.select_tokens(
        importance, lengths, targets=torch.tensor([target]), cover_protected=False
    )
    comparison.assert_same_bits(list(by_keep), list(by_target))


IMPORTANCE, LENGTHS, TARGETS = torch.rand((1, 5)), torch.tensor([5]), torch.tensor([2])


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"targets": None}, "targets: expected targets or keep, got neither"),
        ({"keep": 0.5}, "targets: expected targets or keep, got both"),
        ({"targets": None, "keep": 0.0}, r"keep: expected a number in \(0, 1\], got 0.0"),
        ({"targets": None, "keep": 1.5}, r"keep: expected a number in \(0, 1\], got 1.5"),
        ({"targets": None, "keep": float("nan")}, r"keep: expected .* got nan"),
        ({"candidate_offsets": TARGETS}, "candidate_offsets: expected None without candidates"),
        ({"importance": torch.rand(5)}, r"importance: expected 2 dimensions \[B, C\], got 1"),
        ({"lengths": torch.tensor([5, 5])}, r"lengths: expected shape \[1\], got \[2\]"),
    ],
)
def test_select_spellings_are_checked(changes: dict[str, Any], sentence: str) -> None:
    arguments = {"importance": IMPORTANCE, "lengths": LENGTHS, "targets": TARGETS, **changes}
    with pytest.raises(ValueError, match=f"^lazyllm::select_tokens: {sentence}"):
        ops.select_tokens(**arguments)


@pytest.mark.parametrize(
    "argument, value, sentence",
    [
        ("query", [1.0], "expected a tensor, got list"),
        ("query", None, "expected a tensor, got NoneType"),
        ("query", torch.zeros((1, 1, 1), dtype=torch.float64),
         "expected float32 or bfloat16 or float16, got float64"),
        ("key_store", torch.zeros((1, 1, 1), dtype=torch.float16), "expected float32, got float16"),
        ("key_slots", torch.zeros(1), "expected int64, got float32"),
        ("scale", "large", "expected float, got str"),
        ("window", 1.0, "expected int, got float"),
        ("window", True, "expected int, got bool"),
        ("softcap", None, "expected float, got NoneType"),
    ],
)  # fmt: skip
def test_types_are_checked(argument: str, value: object, sentence: str) -> None:
    arguments = _arguments("lazy_attention", **ATTENTION)
    arguments[argument] = value
    with pytest.raises(TypeError, match=f"^lazyllm::lazy_attention: {argument}: {sentence}$"):
        ops.lazy_attention(**arguments)


def test_a_flag_is_a_bool() -> None:
    with pytest.raises(TypeError, match="cover_protected: expected bool, got int"):
        ops.select_tokens(IMPORTANCE, LENGTHS, targets=TARGETS, cover_protected=1)


@pytest.mark.parametrize(
    "op, options, defaults",
    [
        ("linear", {"rows": 3, "features": (8, 6)}, {"bias": None}),
        ("gated_activation", {"rows": 3, "dim": 8}, {"activation": "silu"}),
        ("rms_norm", {"rows": 3, "dim": 8}, {"eps": 1e-6, "offset": 0.0}),
        ("rotate", {"rows": 3, "heads": 2, "dim": 8, "half": 4}, {"interleaved": False}),
    ],
)
def test_row_defaults(op: str, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    arguments = {**_arguments(op, **options), **defaults}
    expected = comparison.run(op, arguments)
    given = {name: value for name, value in arguments.items() if name not in defaults}
    comparison.assert_same_bits([getattr(ops, op)(**given)], expected)


def test_wrappers_compile_in_one_graph() -> None:
    arguments = _arguments("lazy_attention", **ATTENTION)
    compiled = torch.compile(ops.lazy_attention, fullgraph=True, backend="aot_eager")
    expected = comparison.run("lazy_attention", arguments)
    comparison.assert_same_bits([compiled(**arguments)], expected)


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_PACKAGE", tmp_path)
    with pytest.raises(
        ImportError, match=r"there is no compiled operator library in .*pip install"
    ):
        loading.load()


def test_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / loading.library_path().name).write_text("not a library")
    monkeypatch.setattr(loading, "_PACKAGE", tmp_path)
    with pytest.raises(ImportError, match="do not load into PyTorch"):
        loading.load()


def test_types_are_checked_where_nothing_is_computed() -> None:
    source = torch.ones(4, 3, device="meta")
    with pytest.raises(TypeError, match="aux_gather: index: expected int64, got float32"):
        ops.aux_gather(source, torch.ones(2, device="meta"))
