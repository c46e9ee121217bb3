"""Interleaved timing: every contender once per round, medians over the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from lazyllm_ext.progress_bar import track

from .clock import Clock

_Result = TypeVar("_Result")
_CUDA_CALLS = 20  # between two events: one call is shorter than what starting it costs


def interleave(
    contenders: dict[str, Callable[[], _Result]], rounds: int, warmup: int = 1, title: str = ""
) -> dict[str, list[_Result]]:
    """Run all contenders in turn, `rounds` times; what each returned, by name.

    In turn, so that a machine whose speed drifts drifts for all of them. A bar on standard error
    shows the rounds, unless `title` is empty.
    """
    results: dict[str, list[_Result]] = {name: [] for name in contenders}
    turns: Iterable[int] = range(warmup + rounds)
    for turn in track(turns, title) if title else turns:
        for name, run in contenders.items():
            value = run()
            if turn >= warmup:
                results[name].append(value)
    return results


def seconds(run: Callable[[], Any], device: str = "cpu") -> Callable[[], float]:
    """`run`, returning how many seconds it took; on a GPU the mean of several calls in a row."""

    def timed() -> float:
        clock = Clock()
        run()
        return clock()

    def timed_on_gpu() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(_CUDA_CALLS):
            run()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / _CUDA_CALLS

    return timed if device == "cpu" else timed_on_gpu


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios round by round, which a drifting machine does not move."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(a / b for a, b in pairs)
