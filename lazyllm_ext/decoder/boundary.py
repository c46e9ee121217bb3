"""A boundary is crossed: select, revive, drop. Points 3 to 5 of the step rule, in its order."""

import torch
from torch import Tensor

from lazyllm_ext.state import LazyState, StoreSpec, enter_stage_, put_waiting_, read

from .revival import join_fixed, join_packed, revive_
from .rows import Keys, Rows, Stage, Step
from .rules import BoundaryRule
from .selection import choose


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
    # 3. Select.
    choice = choose(state, rule, step, stage.keys)
    # 4. Revive: what comes back joins the rows that stay.
    choice, revive, revived = revive_(state, rule, step, choice)
    if step.fixed:
        going, joined, kept = join_fixed(state, choice, rows, hidden, revive, revived)
    else:
        going, joined, kept = join_packed(state, number, choice, rows, hidden, revived)
    # 5. Drop.
    if step.fixed:
        put_waiting_(state, number, torch.where(kept, -1, rows.place), hidden)
    else:
        drop = torch.nonzero(~kept).view(-1)
        if drop.size(0) > 0:
            dropped = hidden.index_select(0, drop)
            put_waiting_(state, number, rows.place.index_select(0, drop), dropped)
    slots = enter_stage_(state, spec, number + 1, going.place)
    state.active[number], state.active_offsets[number] = choice.index, choice.offsets
    stored = read(state.slot[number + 1], choice.place)
    active = Keys(choice.index, choice.place, stored, choice.offsets, choice.bounds)
    return active, going, slots, joined
