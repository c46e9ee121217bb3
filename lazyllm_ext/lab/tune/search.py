"""The cheapest candidate within a bound, without running every one. Knows nothing of models.

Two orders make runs unnecessary. Costs are known beforehand: once a candidate is within the bound,
all that cost as much are out. And dropping more is taken to do no better: once a candidate is over
the bound, all that keep no more than it are out. Each run is chosen so that, whichever way it ends,
as many candidates as possible are out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

C = TypeVar("C")


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    best: int | None  # place of the cheapest candidate that is within the bound, None for none
    runs: list[int]  # places of the candidates that were run, in this order
    open: int  # candidates that might be better, and were not run, since the runs were used up


def cheapest(
    candidates: Sequence[C],
    costs: Sequence[float],
    harder: Callable[[C, C], bool],
    within: Callable[[int], bool],
    most_runs: int,
    worth: float = 0.0,
    limit: float = float("inf"),
) -> Found:
    """Search for the cheapest candidate for which `within` is true.

    It is found, if `most_runs` suffice, where `within` is false for every candidate that is
    `harder` than one for which it is false. The same arguments give the same runs.

    Args:
        candidates: distinct.
        costs: of each candidate, in any unit.
        harder: (a, b) -> whether a drops all that b drops, and maybe more; of itself it is.
        within: place of a candidate -> whether it is within the bound; the expensive part.
        most_runs: calls of `within`.
        worth: a candidate is not tried unless it costs less than (1 - worth) times the best.
        limit: nor unless it costs less than this.
    """
    cost = torch.tensor(list(costs), dtype=torch.float64)
    # under[i, j]: j is out when i is over the bound.
    under = torch.tensor(
        [[harder(other, one) for other in candidates] for one in candidates], dtype=torch.bool
    ).view(len(candidates), len(candidates))
    alive = cost < limit
    best: int | None = None
    runs: list[int] = []
    while bool(alive.any()) and len(runs) < most_runs:
        place = _next(cost, under, alive, worth)
        runs.append(place)
        alive[place] = False
        if within(place):
            best = place
            alive &= cost < (1 - worth) * cost[place]
        else:
            alive &= ~under[place]
    return Found(best, runs, int(alive.sum()))


def _next(cost: torch.Tensor, under: torch.Tensor, alive: torch.Tensor, worth: float) -> int:
    """The candidate that puts most out in the worse of its two cases; the cheapest on a tie."""
    places = torch.nonzero(alive).view(-1)
    costs = cost[places]
    if_over = under[places][:, places].sum(dim=1)
    if_within = (costs[None, :] >= (1 - worth) * costs[:, None]).sum(dim=1)
    sure = torch.minimum(if_over, if_within)
    best = torch.nonzero(sure == sure.max()).view(-1)
    return int(places[best[costs[best].argmin()]])
