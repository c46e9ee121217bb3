"""Which tokens are active after a boundary: the best by pooled importance, and protected ones."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lazyllm_ext.state import LazyState, read, table_columns

from .rows import Keys, Step, offsets_of
from .rules import BoundaryRule


def _targets(state: LazyState, rule: BoundaryRule) -> Tensor:
    """[B] int64: how many tokens shall be active; -1 where the sequence is below min_tokens."""
    if rule.budget >= 0:
        target = torch.full_like(state.length, rule.budget)
    else:
        # Clamped: a keep so small that keep · n < 1e-9 would give -0, and never a negative count.
        target = torch.ceil(state.length.double() * rule.keep - 1e-9).clamp(min=0).long()
    if rule.min_tokens > 0:
        target = torch.where(state.length < rule.min_tokens, -1, target)
    return target


def _bounds(state: LazyState, rule: BoundaryRule, step: Step, keys: Keys) -> list[int]:
    """The host's upper bound of |A_s| for each sequence: room for the selection."""
    bounds: list[int] = []
    for sequence, length in enumerate(state.host_length):
        most = keys.bounds[sequence]
        if length >= rule.min_tokens:
            # In fixed shapes the room depends on the tables' capacity, which changes seldom.
            room = table_columns(state) if step.fixed else length
            target = rule.budget if rule.budget >= 0 else math.ceil(room * rule.keep - 1e-9)
            most = min(most, max(target, 1, step.protect_last + rule.protect_first))
        bounds.append(most)
    if step.fixed:  # one shape for all sequences
        return [max(bounds) for _ in bounds]
    return bounds


def select(
    state: LazyState,
    rule: BoundaryRule,
    step: Step,
    candidates: Tensor,
    candidate_offsets: Tensor,
    targets: Tensor,
    bounds: list[int],
    cover_protected: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen token indices (with -1 in unused places), their offsets, and how many are used."""
    offsets = offsets_of(bounds, candidates.device)
    index, used = torch.ops.lazyllm.select_tokens(
        state.importance[rule.number],
        state.length,
        candidates,
        candidate_offsets,
        targets,
        offsets,
        sum(bounds),
        rule.pool,
        rule.protect_first,
        step.protect_last,
        cover_protected,
    )
    return index, offsets, used


def places_of(index: Tensor, offsets: Tensor, columns: int) -> Tensor:
    """Token indices -> places in a [B, columns] table, flattened; -1 stays -1."""
    if offsets.size(0) == 2:
        return index
    sequence = torch.repeat_interleave(offsets[1:] - offsets[:-1], output_size=index.size(0))
    return torch.where(index >= 0, index + sequence * columns, -1)


class Choice(NamedTuple):
    """A_s while it is being settled: packed like Keys, slots not known yet."""

    index: Tensor  # [K] int64, -1: unused
    place: Tensor  # [K] int64
    waits: Tensor  # [K] bool, in the Aux Cache
    offsets: Tensor  # [B + 1] int64
    bounds: list[int]


def choose(state: LazyState, rule: BoundaryRule, step: Step, keys: Keys) -> Choice:
    """Select A_s among the active tokens, by pooled importance and protection."""
    bounds = _bounds(state, rule, step, keys)
    candidates = torch.where(keys.slots >= 0, keys.index, -1)
    index, offsets, used = select(
        state, rule, step, candidates, keys.offsets, _targets(state, rule), bounds, True
    )
    if not step.fixed:  # without unused places, at the price of one read of the device's counts
        counts: list[int] = used.tolist()
        if counts != bounds:
            index = index[index >= 0]
        offsets, bounds = offsets_of(counts, index.device), counts
    place = places_of(index, offsets, table_columns(state))
    return Choice(index, place, read(state.aux_slot[rule.number], place) >= 0, offsets, bounds)
