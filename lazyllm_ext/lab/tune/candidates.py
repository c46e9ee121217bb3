"""The schedules that a search chooses from, in the order of what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.lab.evaluation.static import SCORING
from lazyllm_ext.lab.tools.cost import prefill_operations
from lazyllm_ext.lab.tools.dense import full_attention, some_layers
from lazyllm_ext.schedule import Boundary, PruningSchedule

KEEPS = (0.75, 0.55, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)


@dataclass(frozen=True)
class Candidate:
    """Boundaries as (layer, keep): layers ascend, keeps fall. None of them is the dense model."""

    boundaries: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        return ", ".join(f"{layer}: {keep:g}" for layer, keep in self.boundaries) or "dense"

    def schedule(self, name: str | None = None, min_tokens: int = 0) -> PruningSchedule:
        """The whole schedule, with scores as they are tuned: a window of queries, pooled."""
        boundaries = tuple(Boundary(layer=layer, keep=keep) for layer, keep in self.boundaries)
        return replace(SCORING, boundaries=boundaries, min_tokens=min_tokens, name=name)


def grid(
    layers: Sequence[int], most_boundaries: int, keeps: Sequence[float] = KEEPS
) -> list[Candidate]:
    """Every way to place 1 to `most_boundaries` boundaries in these layers with falling keeps."""
    falling = sorted(keeps, reverse=True)
    return [
        Candidate(tuple(zip(places, parts, strict=True)))
        for count in range(1, most_boundaries + 1)
        for places in itertools.combinations(sorted(layers), count)
        for parts in itertools.combinations(falling, count)
    ]


def harder(one: Candidate, other: Candidate) -> bool:
    """Whether `one` has every boundary of `other`, in the same layer, and keeps no more there."""
    keeps = dict(one.boundaries)
    return all(keeps.get(layer, 2.0) <= keep for layer, keep in other.boundaries)


def tail(dense: LazyDecoder, schedule: PruningSchedule, first: int) -> LazyDecoder:
    """The decoder from layer `first` on, as a decoder of its own.

    All before the first boundary is the dense model, so what enters that layer is the same for
    every schedule that begins there, and `LazyDecoder.step` takes it in place of embedded tokens.

    Args:
        dense: a decoder of the whole model.
        schedule: without a boundary before `first`.
        first: a layer.
    """
    moved = tuple(
        replace(boundary, layer=boundary.layer - first)
        for boundary in schedule.boundaries
        if boundary.layer is not None
    )
    resolved = replace(schedule, boundaries=moved).resolve(full_attention(dense)[first:])
    return some_layers(dense, slice(first, None), resolved, embeds=False)


def operations(dense: LazyDecoder, candidate: Candidate, tokens: int) -> int:
    """Operations of a prefill of so many tokens, before it is run: kept ones are spread evenly.

    See `lazyllm_ext.lab.tools.cost.prefill_operations`.
    """
    active = []
    protected = SCORING.window + SCORING.protect_first
    count = tokens
    for _, keep in candidate.boundaries:
        count = min(count, max(protected, math.ceil(keep * tokens - 1e-9)))
        active.append(torch.linspace(0, tokens - 1, count).round().long())
    return prefill_operations(tail(dense, candidate.schedule(), 0), tokens, active).total
