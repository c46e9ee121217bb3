"""The rules of a schedule's boundaries, as a decoder needs them."""

from typing import NamedTuple

from lazyllm_ext.schedule import ResolvedSchedule


class BoundaryRule(NamedTuple):
    """One boundary of a resolved schedule, with the rules that all of its boundaries share."""

    number: int  # 0 … S-1; rows that pass enter stage number + 1
    keep: float
    budget: int  # absolute number of tokens instead of keep; -1: none
    heads: list[int]  # query heads that score; empty: all
    over_heads: str  # "mean", or "max" for the largest of the heads' sums
    pool: int
    protect_first: int
    max_revive: int  # -1: unbounded
    min_tokens: int


def boundary_rules(schedule: ResolvedSchedule, num_heads: list[int]) -> list[BoundaryRule]:
    """The rules of a schedule's boundaries, for a model with so many query heads in each layer.

    Raises:
        ValueError: a boundary names a head that its layer does not have.
    """
    rules: list[BoundaryRule] = []
    for number, layer in enumerate(schedule.layers):
        heads = schedule.heads[number] if schedule.heads else ()
        for head in heads:
            if head >= num_heads[layer]:
                raise ValueError(
                    f"schedule: layer {layer}: heads: expected numbers of query heads, 0 to "
                    f"{num_heads[layer] - 1}, got {head}"
                )
        rules.append(
            BoundaryRule(
                number,
                schedule.keeps[number],
                schedule.budgets[number],
                list(heads),
                schedule.over_heads,
                schedule.pool,
                schedule.protect_first,
                schedule.max_revive,
                schedule.min_tokens,
            )
        )
    return rules
