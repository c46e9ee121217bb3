"""Two models with the same weights: LazyLLM comes and goes on one of them."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lazyllm_ext
from lazyllm_ext.hf.models.versions import CACHE_NAME

from ..every_model import tiny_of
from ..tiny import MODELS, tiny_model

FAMILIES = (
    *("llama", "mistral-sliding", "qwen2", "qwen3", "gemma3"),
    *("gpt2", "mixtral", "gpt_neox", "falcon", "phi"),
)
PACKAGE = str(Path(lazyllm_ext.__file__).parent)
TOLERANCE = 2e-4  # of float32 logits, which are a few units here
ALL = 1_000_000  # steps


@cache
def _prototype(family: str) -> nn.Module:
    return tiny_model(family) if family in MODELS else tiny_of(family)


def new_model(family: str) -> Any:
    """A fresh model of a family, the same weights each time."""
    model: Any = copy.deepcopy(_prototype(family))
    model.config._attn_implementation = "sdpa"
    return model


@dataclass
class Outcome:
    """What a call gave, or the error that it ended with."""

    value: Any = None
    error: Exception | None = None

    def __repr__(self) -> str:
        return f"{type(self.value).__name__}" if self.error is None else f"{self.error!r}"


def outcome(call: Callable[[], Any]) -> Outcome:
    """The outcome of a call; warnings are of no interest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome(call())
    except Exception as error:  # any: two models are compared in how they fail, too
        return Outcome(error=error)


def check_refusal(error: Exception) -> None:
    """AssertionError unless it is ours, one sentence, and of a type that says who is at fault."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    said = "".join(traceback.format_exception(error))
    assert innermost.startswith(PACKAGE), f"an error that comes from elsewhere:\n{said}"
    assert isinstance(error, (ValueError, TypeError)), said
    words = str(error)
    assert words, said
    assert "\n" not in words, said
    assert len(words) < 500, said


def check_same(got: Any, expected: Any, half: bool) -> None:
    """AssertionError unless two results of generate, or of a model, are equal to rounding.

    Args:
        half: a dtype whose rounding decides tokens: then only the first logits are compared, and
            loosely, since a wrong one is far off.
    """
    if isinstance(expected, Tensor):
        assert half or torch.equal(got, expected), f"{got.tolist()} for {expected.tolist()}"
        return
    ours, theirs = (dict(_tensors(result)) for result in (got, expected))
    if half:
        for name in theirs:
            if name.endswith(("logits", "logits.0")):
                mine, other = ours[name].double(), theirs[name].double()
                difference = (mine - other).abs().mean() / other.abs().mean()
                assert difference < 0.25, f"{name}: {difference}"
        return
    assert ours.keys() == theirs.keys(), f"{sorted(ours.keys() ^ theirs.keys())} of one alone"
    steps = _certain_steps(ours, theirs)
    for name, tensor in theirs.items():
        step = name.rpartition(".")[2]
        if step.isdigit() and int(step) >= steps:
            continue  # after tokens that rounding decided
        if tensor.is_floating_point():
            torch.testing.assert_close(
                ours[name], tensor, atol=TOLERANCE, rtol=1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip
        elif steps == ALL:
            assert torch.equal(ours[name], tensor), (
                f"{name}: {ours[name].tolist()} for {tensor.tolist()}"
            )


def _certain_steps(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> int:
    """How many steps of generation may be compared: all, but where rounding decided a token."""
    for step in range(len(theirs)):
        top = theirs.get(f"logits.{step}")
        if top is None:
            break
        two = top.float().topk(2).values
        if bool((two[:, 0] - two[:, 1] < 2 * TOLERANCE).any()):
            return step + 1
    return ALL


def _tensors(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a result by name, caches left out."""
    if isinstance(result, Tensor):
        yield name, result
    elif isinstance(result, dict):
        for key, value in result.items():
            if key not in (CACHE_NAME, "past_key_values"):
                yield from _tensors(value, f"{name}.{key}" if name else key)
    elif isinstance(result, (tuple, list)):
        for number, value in enumerate(result):
            yield from _tensors(value, f"{name}.{number}")
