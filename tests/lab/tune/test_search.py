"""The search alone, on made-up costs and losses."""

from __future__ import annotations

import math
import random

import pytest

from lazyllm_ext.lab.tune.candidates import KEEPS, Candidate, grid, harder
from lazyllm_ext.lab.tune.search import Found, cheapest

LAYERS = 30


def cost(candidate: Candidate) -> float:
    """Token-layers, in parts of a dense prefill's."""
    total, keep, before = 0.0, 1.0, 0
    for layer, next_keep in candidate.boundaries:
        total += (layer - before) * keep
        keep, before = next_keep, layer
    return (total + (LAYERS - before) * keep) / LAYERS


def losses(candidates: list[Candidate], seed: int) -> list[float]:
    """A loss that never falls when more is dropped."""
    draw = random.Random(seed)
    blind = {layer: draw.uniform(0.3, 3) * math.exp(-layer / 8) for layer in range(LAYERS)}
    return [
        sum(blind[layer] * 0.01 * (1 / keep - 1) for layer, keep in candidate.boundaries)
        for candidate in candidates
    ]


def search(candidates: list[Candidate], loss: list[float], bound: float, runs: int) -> Found:
    costs = [cost(candidate) for candidate in candidates]
    return cheapest(candidates, costs, harder, lambda place: loss[place] <= bound, runs, limit=1.0)


@pytest.mark.parametrize("seed", range(5))
def test_finds_the_best_with_few_runs(seed: int) -> None:
    candidates = grid([8, 11, 13, 15, 18, 22], 2)
    loss = losses(candidates, seed)
    found = search(candidates, loss, 0.02, len(candidates))
    fine = [cost(c) for c, lost in zip(candidates, loss, strict=True) if lost <= 0.02]
    assert found.best is not None
    assert cost(candidates[found.best]) == min(fine)
    assert found.open == 0
    assert len(found.runs) < len(candidates) // 8
    assert len(set(found.runs)) == len(found.runs)
    assert found == search(candidates, loss, 0.02, len(candidates))


def test_nothing_is_within() -> None:
    candidates = grid([8, 11], 2)
    found = search(candidates, losses(candidates, 0), 0.0, 100)
    assert (found.best, found.open) == (None, 0)
    # The two mildest ones drop less than all others: nothing puts them out.
    mildest = {Candidate(((8, 0.75),)), Candidate(((11, 0.75),))}
    assert mildest <= {candidates[place] for place in found.runs}
    assert len(found.runs) < 15


def test_everything_is_within() -> None:
    candidates = grid([8, 11], 2)
    found = search(candidates, losses(candidates, 0), 1e9, 100)
    assert found.best is not None
    assert candidates[found.best] == Candidate(((8, 0.05),))
    assert len(found.runs) < 10


def test_runs_are_used_up() -> None:
    candidates = grid([8, 11, 13, 15], 2)
    found = search(candidates, losses(candidates, 1), 0.02, 3)
    assert len(found.runs) == 3
    assert found.open > 0


def test_what_is_not_worth_it_is_not_run() -> None:
    candidates = grid([8, 11], 1)
    costs = [cost(candidate) for candidate in candidates]
    assert cheapest(candidates, costs, harder, lambda place: True, 9, limit=0.1).runs == []
    assert cheapest([], [], harder, lambda place: True, 9) == Found(None, [], 0)
    assert len(cheapest(candidates, costs, harder, lambda place: True, 99, worth=0.99).runs) == 1


def test_grid() -> None:
    candidates = grid([3, 5, 9], 3, (0.5, 0.2))
    assert [len(candidate.boundaries) for candidate in candidates] == [1] * 6 + [2] * 3
    assert str(candidates[-1]) == "5: 0.5, 9: 0.2"
    assert len(grid([1, 2, 3, 4, 5, 6], 2)) == 6 * 8 + 15 * 28
    assert sorted(KEEPS, reverse=True) == list(KEEPS)


def test_harder() -> None:
    one = Candidate(((3, 0.5), (5, 0.2)))
    assert harder(one, one)
    assert harder(one, Candidate(((5, 0.3),)))
    assert harder(one, Candidate(()))
    assert not harder(one, Candidate(((5, 0.1),)))
    assert not harder(one, Candidate(((4, 0.5),)))
    assert not harder(Candidate(((3, 0.5),)), one)
