"""min_tokens="auto": from which length on dropping tokens makes a prefill sooner, measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from rich.progress import BarColumn, TextColumn
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.hf.models.build import build_decoder
from lazyllm_ext.progress_bar import progress_bar
from lazyllm_ext.schedule import PruningSchedule

NEVER = 2**31 - 1  # more tokens than any prompt has
_SHORTEST, _LONGEST = 32, 4096
_GAIN = 1.03  # a prefill that is sooner by less than that is not sooner: so much is noise
_ROUNDS = 9
_SECONDS = 15.0  # in which the search ends

# What was found in this process: by model, and then by what else decides about time.
_found: MutableMapping[Any, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


def min_tokens_of(model: Any, schedule: PruningSchedule) -> int:
    """The shortest prompt of this model that the schedule makes sooner, on this machine.

    Prefills of random tokens are timed with and without dropping, by the same decoder; lengths
    double from 32 to 4,096 (or the model's longest) until dropping wins, and are bisected then.

    Args:
        schedule: its own `min_tokens` has no effect.

    Returns:
        A number of tokens; `NEVER` if no length that was tried is sooner. Where time runs out
        first, the length after the longest that was tried.
    """
    if not schedule.boundaries:
        return 0
    rules = {**schedule.to_dict(), "min_tokens": None, "name": None, "models": None}
    weight: Tensor = model.get_input_embeddings().weight
    key = (json.dumps(rules, sort_keys=True), weight.dtype, weight.device, torch.get_num_threads())
    found = _found.setdefault(model, {})
    if key not in found:
        pruned, whole = (
            build_decoder(model, replace(schedule, min_tokens=least)) for least in (0, NEVER)
        )
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        with _bar() as show, torch.inference_mode(False), torch.no_grad():
            found[key] = search(
                _Race(pruned, whole, show).gain, min(longest or _LONGEST, _LONGEST), _SECONDS
            )
    return found[key]


def search(gain: Callable[[int], float], longest: int, seconds: float) -> int:
    """The shortest length whose gain is enough, if gains grow with the length; see above.

    Args:
        gain: tokens -> time without dropping ÷ time with it.
        longest: that may be tried.
        seconds: after which the search ends, one measurement later at most.
    """
    began = perf_counter()
    below, length = 0, min(_SHORTEST, longest)
    while gain(length) < _GAIN:
        if length == longest:
            return NEVER
        below, length = length, min(2 * length, longest)
        # The next length takes more than all before it.
        if perf_counter() - began > seconds / 3:
            return length
    while length - below > max(length // 8, 16) and below and perf_counter() - began < seconds:
        between = (below + length) // 2
        if gain(between) < _GAIN:
            below = between
        else:
            length = between
    return length


class _Race:
    """Prefills of random tokens by two decoders, in turn."""

    def __init__(self, pruned: LazyDecoder, whole: LazyDecoder, show: Callable[[int], None]):
        self._decoders = (whole, pruned)
        self._show = show

    def gain(self, tokens: int) -> float:
        """Median over rounds of the time without dropping ÷ the time with it."""
        self._show(tokens)
        weight: Any = self._decoders[0].embed.weight
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(weight.size(0), (tokens,), generator=generator).to(weight.device)
        began = perf_counter()
        gains: list[float] = []
        for decoder in self._decoders:  # what a first call alone has to do
            _seconds(decoder, ids)
        while len(gains) < _ROUNDS:
            whole, pruned = (_seconds(decoder, ids) for decoder in self._decoders)
            gains.append(whole / pruned)
            one_sided = min(gains) >= _GAIN or max(gains) < _GAIN
            if len(gains) >= 3 and (one_sided or perf_counter() - began > _SECONDS / 8):
                break
        return statistics.median(gains)


def _seconds(decoder: LazyDecoder, ids: Tensor) -> float:
    began = perf_counter()
    hidden = decoder.embed_tokens(ids)
    positions = torch.arange(ids.size(0), device=ids.device)
    decoder.step(hidden, positions, [ids.size(0)], decoder.new_state(1, hidden), 1)
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    return perf_counter() - began


@contextmanager
def _bar() -> Iterator[Callable[[int], None]]:
    """A bar on a terminal: lengths tried, of the seconds that the search may take."""
    columns = (TextColumn("min_tokens: {task.description}"), BarColumn())
    with progress_bar(*columns, total=_SECONDS) as draw:
        began = perf_counter()

        def show(tokens: int) -> None:
            done = min(perf_counter() - began, _SECONDS)
            said = f"{tokens:,} tokens, with and without dropping"
            draw(completed=done, description=said)

        yield show
