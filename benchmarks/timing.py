"""Interleaved timing: every contender once per round, medians over the rounds."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from rich.progress import track


def interleave(
    contenders: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1
) -> dict[str, list[Any]]:
    """Run all contenders in turn, `rounds` times; what each returned, by name.

    In turn, so that a machine whose speed drifts drifts for all of them.
    """
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for turn in track(range(warmup + rounds), description=", ".join(contenders)):
        for name, run in contenders.items():
            value = run()
            if turn >= warmup:
                results[name].append(value)
    return results


def seconds(run: Callable[[], Any]) -> Callable[[], float]:
    """`run`, returning how long it took."""

    def timed() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    return timed


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
