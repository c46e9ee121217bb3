"""Selected tokens that wait in the Aux Cache come back, and join the rows that stay."""

import torch
from torch import Tensor

from lazyllm_ext.state import LazyState, read, table_columns, take_waiting_

from .rows import Rows, Step
from .rules import BoundaryRule
from .selection import Choice, places_of, select


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
    index, offsets, _ = select(
        state,
        rule,
        step,
        torch.where(choice.waits, choice.index, -1),
        choice.offsets,
        torch.full_like(state.length, rule.max_revive),
        limit,
        False,
    )
    revived = places_of(index, offsets, table_columns(state))
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


def join_packed(
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


def join_fixed(
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
