"""A boundary: score, select, revive, drop. What is computed is the step rule, in its order."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lazyllm_ext.schedule import ResolvedSchedule
from lazyllm_ext.state import (
    LazyState,
    StoreSpec,
    enter_stage_,
    put_waiting_,
    read,
    table_columns,
    take_waiting_,
)

from .rows import Keys, Rows, Stage, Step, offsets_of


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


def update_importance_(
    state: LazyState, number: int, step: Step, keys: Keys, scored: Tensor, window: int
) -> None:
    """I = decay · I + Σ p / window; `scored` [K] float32 is Σ p of this step's window queries."""
    importance = state.importance[number]  # [B, cap]
    if step.forgets:  # 0 · NaN is NaN: what counts for nothing is put to 0, not multiplied
        importance.copy_(torch.where(step.decay > 0, importance * step.decay, 0.0))
    else:
        importance.mul_(step.decay)
    importance.view(-1).index_add_(0, keys.place.clamp(min=0), scored, alpha=1.0 / window)


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


def _select(
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


def _places(index: Tensor, offsets: Tensor, columns: int) -> Tensor:
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
    index, offsets, used = _select(
        state, rule, step, candidates, keys.offsets, _targets(state, rule), bounds, True
    )
    if not step.fixed:  # without unused places, at the price of one read of the device's counts
        counts: list[int] = used.tolist()
        if counts != bounds:
            index = index[index >= 0]
        offsets, bounds = offsets_of(counts, index.device), counts
    place = _places(index, offsets, table_columns(state))
    return Choice(index, place, read(state.aux_slot[rule.number], place) >= 0, offsets, bounds)


def revive_(
    state: LazyState, rule: BoundaryRule, step: Step, choice: Choice
) -> tuple[Choice, Tensor, Tensor]:
    """Take what may revive out of the Aux Cache, and what may not out of A_s.

    Returns A_s, the places [V] of the revived tokens (ascending in each sequence, -1: unused), and
    their hidden states [V, hidden].
    """
    number = rule.number
    if rule.max_revive < 0:
        revived = choice.place[choice.waits]
        return choice, revived, take_waiting_(state, number, revived, True)
    limit = [min(rule.max_revive, bound) for bound in choice.bounds]
    index, offsets, _ = _select(
        state,
        rule,
        step,
        torch.where(choice.waits, choice.index, -1),
        choice.offsets,
        torch.full_like(state.length, rule.max_revive),
        limit,
        False,
    )
    revived = _places(index, offsets, table_columns(state))
    if not step.fixed:
        revived = revived[revived >= 0]
    hidden = take_waiting_(state, number, revived, not step.fixed)
    left_out = read(state.aux_slot[number], choice.place) >= 0
    return _leave_out(choice, left_out, step.fixed), revived, hidden


def _offsets_where(mask: Tensor, offsets: Tensor) -> Tensor:
    """Offsets [B + 1] of the entries that are left when only those in `mask` stay."""
    before = torch.zeros([mask.size(0) + 1], dtype=torch.int64, device=mask.device)
    before[1:] = torch.cumsum(mask, 0)
    return before.index_select(0, offsets)


def _leave_out(choice: Choice, out: Tensor, fixed: bool) -> Choice:
    """A_s without the entries in `out` [K] bool."""
    if fixed:
        index, place = torch.where(out, -1, choice.index), torch.where(out, -1, choice.place)
        return Choice(index, place, choice.waits & ~out, choice.offsets, choice.bounds)
    stay = ~out
    offsets = _offsets_where(stay, choice.offsets)
    counts: list[int] = (offsets[1:] - offsets[:-1]).tolist()
    return Choice(choice.index[stay], choice.place[stay], choice.waits[stay], offsets, counts)


def _join_packed(
    state: LazyState, number: int, choice: Choice, rows: Rows, hidden: Tensor, revived: Tensor
) -> tuple[Rows, Tensor, Tensor]:
    """Kept rows and revived ones in the order of A_s: rows, hidden states, kept [R] bool."""
    # Without keys and values in the next stage: exactly the rows that go on.
    fresh = read(state.slot[number + 1], choice.place) < 0
    going = Rows(choice.index[fresh], choice.place[fresh], _offsets_where(fresh, choice.offsets))
    chosen = torch.zeros([state.slot[0].numel()], dtype=torch.bool, device=hidden.device)
    chosen[choice.place] = True
    kept = chosen.index_select(0, rows.place)
    if revived.size(0) == 0:
        return going, hidden[kept], kept
    from_aux = choice.waits[fresh]
    joined = hidden.new_empty([going.place.size(0), hidden.size(1)])
    joined[from_aux] = revived
    joined[~from_aux] = hidden[kept]
    return going, joined, kept


def _join_fixed(
    state: LazyState, choice: Choice, rows: Rows, hidden: Tensor, revive: Tensor, revived: Tensor
) -> tuple[Rows, Tensor, Tensor]:
    """The same in fixed shapes: each sequence's revived rows, then its old ones, all kept."""
    batch, columns = state.length.size(0), table_columns(state)
    # [B, rows, 1] against [B, 1, K]: a few rows, so comparing beats a table of marks.
    mine, theirs = rows.place.view(batch, -1, 1), choice.place.view(batch, 1, -1)
    kept = ((mine == theirs) & (mine >= 0)).any(dim=2).view(-1)
    old = torch.where(kept, rows.place, -1)
    place = torch.cat([revive.view(batch, -1), old.view(batch, -1)], dim=1)
    width = hidden.size(1)
    joined = torch.cat([revived.view(batch, -1, width), hidden.view(batch, -1, width)], dim=1)
    offsets = torch.arange(batch + 1, dtype=torch.int64, device=place.device) * place.size(1)
    flat = place.view(-1)
    index = torch.where(flat >= 0, flat % columns, -1)
    return Rows(index, flat, offsets), joined.view(-1, width), kept


def cross_boundary_(
    state: LazyState, spec: StoreSpec, rule: BoundaryRule, step: Step, stage: Stage, hidden: Tensor
) -> tuple[Keys, Rows, Tensor, Tensor]:
    """Select, revive and drop, once the importance is known.

    Args:
        stage: before the boundary: the rows that entered its layer, and A_{s-1}.
        hidden: its layer's input [R, hidden].

    Returns:
        A_s, the rows that go on, their slots [R'] in the next stage, and the boundary layer's input
        for them [R', hidden].
    """
    number, rows = rule.number, stage.rows
    choice = choose(state, rule, step, stage.keys)
    choice, revive, revived = revive_(state, rule, step, choice)
    if step.fixed:
        going, joined, kept = _join_fixed(state, choice, rows, hidden, revive, revived)
        put_waiting_(state, number, torch.where(kept, -1, rows.place), hidden)
    else:
        going, joined, kept = _join_packed(state, number, choice, rows, hidden, revived)
        drop = torch.nonzero(~kept).view(-1)
        if drop.size(0) > 0:
            dropped = hidden.index_select(0, drop)
            put_waiting_(state, number, rows.place.index_select(0, drop), dropped)
    slots = enter_stage_(state, spec, number + 1, going.place)
    state.active[number], state.active_offsets[number] = choice.index, choice.offsets
    stored = read(state.slot[number + 1], choice.place)
    active = Keys(choice.index, choice.place, stored, choice.offsets, choice.bounds)
    return active, going, slots, joined
