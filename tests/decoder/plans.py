"""Random schedules, and what happens in a random conversation, for hypothesis."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from helpers import MODELS, boundary_layers, random_ids, shared_model
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lazyllm_ext.schedule import Boundary, PruningSchedule

from .pair import Pair

_EXAMPLES = os.environ.get("LAZYLLM_HYPOTHESIS_EXAMPLES")


def examples(share: float = 1.0) -> settings:
    """40 examples, the same in every run, or as many new ones as LAZYLLM_HYPOTHESIS_EXAMPLES says.

    Args:
        share: of that number; for tests that are dear.
    """
    return settings(
        max_examples=max(1, round(share * int(_EXAMPLES or 40))),
        derandomize=_EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=True,
    )


@dataclass(frozen=True)
class Turn:
    """Several new tokens of each sequence at once."""

    counts: tuple[int, ...]
    asked: int = 1
    gap: int = 0


@dataclass(frozen=True)
class Decode:
    """Greedy tokens one by one."""

    steps: int


@dataclass(frozen=True)
class Crop:
    """The newest tokens are removed."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A conversation of a batch."""

    model: str
    schedule: PruningSchedule
    actions: tuple[Turn | Decode | Crop, ...]
    seed: int = 0
    fixed: bool = False  # decode in fixed shapes

    @property
    def batch(self) -> int:
        first = self.actions[0]
        assert isinstance(first, Turn)
        return len(first.counts)

    def run(self, pair: Pair) -> None:
        """Do it all; every step is compared, and in the end what is stored."""
        for number, action in enumerate(self.actions):
            if isinstance(action, Turn):
                tokens = [
                    random_ids(count, seed=1000 * self.seed + 10 * number + b)
                    for b, count in enumerate(action.counts)
                ]
                pair.step(tokens, action.asked, action.gap)
            elif isinstance(action, Decode):
                pair.decode(action.steps)
            else:
                pair.crop(action.counts)
        pair.compare_stores()


_REVIVE = st.sampled_from([None, None, 0, 1, 2])
_KEEPS = st.sampled_from([1.0, 0.95, 0.8, 0.7, 0.5, 0.49, 0.34, 0.25, 0.1, 0.02])


@st.composite
def schedules(draw: Any, layers: list[int], revive: Any = None) -> PruningSchedule:
    """Up to 3 boundaries in some of these layers, by keep or budget, and every rule."""
    chosen = draw(st.lists(st.sampled_from(layers), max_size=3, unique=True)) if layers else []
    keeps = sorted((draw(_KEEPS) for _ in chosen), reverse=True)
    budgets = sorted((draw(st.integers(1, 30)) for _ in chosen), reverse=True)
    boundaries = []
    for layer, keep, budget in zip(sorted(chosen), keeps, budgets, strict=True):
        by_budget = draw(st.sampled_from([False, False, True]))
        heads = draw(st.sampled_from([None, None, (0,), (1, 3)]))
        boundaries.append(
            Boundary(layer=layer, tokens=budget, heads=heads)
            if by_budget
            else Boundary(layer=layer, keep=keep, heads=heads)
        )
    return PruningSchedule(
        tuple(boundaries),
        window=draw(st.integers(1, 8)),
        pool=draw(st.sampled_from([1, 3, 5])),
        protect_first=draw(st.sampled_from([0, 0, 1, 4])),
        over_heads=draw(st.sampled_from(["mean", "mean", "max"])),
        accumulate=draw(st.sampled_from([False, False, True])),
        max_revive=draw(_REVIVE if revive is None else revive),
        min_tokens=draw(st.sampled_from([0, 0, 0, 8, 30])),
    )


@st.composite
def plans(
    draw: Any, batch: Any = None, crops: bool = True, revive: Any = None, names: Any = tuple(MODELS)
) -> Plan:
    """A prompt of 1 to 40 tokens for each sequence, then turns, decoding and crops."""
    name = draw(st.sampled_from(names))
    schedule = draw(schedules(boundary_layers(shared_model(name)), revive))
    sequences = draw(st.just(1) if batch is None else batch)

    def turn(fewest: int, most: int) -> Turn:
        counts = [draw(st.integers(fewest, most)) for _ in range(sequences)]
        if not any(counts):
            counts[0] = 1
        # At most what every sequence brings: more is refused.
        asked = draw(st.integers(1, min(3, *(count for count in counts if count > 0), 3)))
        return Turn(tuple(counts), asked, draw(st.sampled_from([0, 0, 3])))

    actions: list[Turn | Decode | Crop] = [turn(1, 40)]
    kinds = ["decode", "decode", "turn", "crop"] if crops else ["decode", "turn"]
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(kinds))
        if kind == "decode":
            actions.append(Decode(draw(st.integers(1, 6))))
        elif kind == "turn":
            actions.append(turn(0 if sequences > 1 else 1, 10))
        else:
            actions.append(Crop(tuple(draw(st.integers(0, 6)) for _ in range(sequences))))
    fixed = schedule.max_revive is not None and draw(st.booleans())
    return Plan(name, schedule, tuple(actions), draw(st.integers(0, 99)), fixed)
