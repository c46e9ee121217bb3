"""How far a prefill is, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter

from lazyllm_ext.decoder import LazyDecoder


@dataclass(frozen=True)
class Progress:
    """One more layer of a prefill is done.

    Attributes:
        layers_done, layers: of how many.
        tokens: new tokens of the prompt, all sequences together.
        tokens_in_layer: of how many the layer was computed to its end.
        seconds: since the prefill began.
        remaining_seconds: an estimate, which knows what the schedule keeps.
    """

    layers_done: int
    layers: int
    tokens: int
    tokens_in_layer: int
    seconds: float
    remaining_seconds: float


# Of the call that is running in this thread or task: two generations at once each have their own.
_watcher: ContextVar[Callable[[int, int], None] | None] = ContextVar("watcher", default=None)


def tell_watcher(layer: int, rows: int) -> None:
    """What every decoder of an `apply` calls after a layer."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(layer, rows)


@contextmanager
def watched(
    callback: Callable[[Progress], object] | None, decoder: LazyDecoder, tokens: int
) -> Iterator[None]:
    """Call `callback` after every layer that is computed within; what it raises ends the step."""
    # A call within another one's callback tells that one nothing.
    before = _watcher.set(callback and _telling(callback, decoder, tokens))
    try:
        yield
    finally:
        _watcher.reset(before)


def _telling(
    callback: Callable[[Progress], object], decoder: LazyDecoder, tokens: int
) -> Callable[[int, int], None]:
    """A watcher that calls back with what a layer's number and rows say of the whole."""
    shares = _shares(decoder, tokens)
    began = perf_counter()

    def watcher(layer: int, rows: int) -> None:
        seconds, done = perf_counter() - began, layer + 1
        remaining = seconds * sum(shares[done:]) / sum(shares[:done])
        callback(Progress(done, len(shares), tokens, rows, seconds, remaining))

    return watcher


def _shares(decoder: LazyDecoder, tokens: int) -> list[float]:
    """Which part of the prompt each layer computes, by the schedule."""
    share, shares = 1.0, []
    for number in decoder.boundary_at:
        if number >= 0 and tokens >= decoder.boundaries[number].min_tokens:
            boundary = decoder.boundaries[number]
            kept = boundary.budget / tokens if boundary.budget >= 0 else boundary.keep
            share = min(share, max(kept, 1 / tokens))
        shares.append(share)
    return shares
