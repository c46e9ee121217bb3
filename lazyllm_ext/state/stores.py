"""Slots of the key/value stores and Aux Caches: handing out, growing, giving back.

A store is never filled twice in the same place: rows are appended, and what crops and revivals
leave behind is removed by compaction when it is worth a copy. Growing is by an eighth, so a token
costs a bounded number of copies, and a store is at most an eighth, or 16 rows, larger than what it
holds.
"""

import torch
from torch import Tensor

from .tables import LazyState, StoreSpec, read, write_


def _resized(store: Tensor, capacity: int, used: int) -> Tensor:
    shape = list(store.shape)
    shape[0] = capacity
    larger = torch.empty(shape, dtype=store.dtype, device=store.device)
    if used > 0:
        larger[:used] = store[:used]
    return larger


def _compact_table_(
    state: LazyState, tables: list[Tensor], number: int, counter: int, capacity: int
) -> Tensor:
    """Move the live slots of a table to 0, 1, 2 …; returns what they were, ascending."""
    table = tables[number]
    live = torch.unique(table[table >= 0])  # sorted; beams may share a slot
    moved = torch.full([capacity], -1, dtype=torch.int64, device=table.device)
    moved[live] = torch.arange(live.size(0), dtype=torch.int64, device=table.device)
    tables[number] = read(moved, table.reshape(-1)).view(table.shape)
    state.used[counter] = live.size(0)
    state.used_bound[counter] = live.size(0)
    state.freed[counter] = 0
    return live


def compact_kv_(state: LazyState, spec: StoreSpec, stage: int) -> None:
    """Close the holes that cropped tokens left in the stores of a stage."""
    layers = spec.stage_layers[stage]
    live = _compact_table_(state, state.slot, stage, stage, state.keys[layers[0]].size(0))
    for layer in layers:
        state.keys[layer] = state.keys[layer].index_select(0, live)
        state.values[layer] = state.values[layer].index_select(0, live)


def compact_aux_(state: LazyState, boundary: int) -> None:
    """Give back the memory of revived tokens; `boundary` counts from 0."""
    counter, capacity = len(state.slot) + boundary, state.aux[boundary].size(0)
    live = _compact_table_(state, state.aux_slot, boundary, counter, capacity)
    state.aux[boundary] = state.aux[boundary].index_select(0, live)


def exact_counts_(state: LazyState) -> None:
    """Replace the host's upper bounds, all that fixed-shape steps give, by the device's counts."""
    exact: list[int] = state.used.tolist()
    for counter, rows in enumerate(exact):
        state.used_bound[counter] = rows


def reserve_kv_(state: LazyState, spec: StoreSpec, stage: int, rows: int) -> None:
    """Room for `rows` more slots in every layer of a stage."""
    layers = spec.stage_layers[stage]
    if len(layers) == 0:
        return
    if state.used_bound[stage] + rows <= state.keys[layers[0]].size(0):
        return
    exact_counts_(state)
    if state.freed[stage] * 16 > state.used_bound[stage]:
        compact_kv_(state, spec, stage)
    used = state.used_bound[stage]
    if used + rows <= state.keys[layers[0]].size(0):
        return
    # A little room at first, an eighth when a store has proved to grow.
    capacity = used + rows + max((used + rows) // (8 if used > 0 else 16), 16)
    for layer in layers:
        state.keys[layer] = _resized(state.keys[layer], capacity, used)
        state.values[layer] = _resized(state.values[layer], capacity, used)


def reserve_aux_(state: LazyState, boundary: int, rows: int) -> None:
    """Room for `rows` more waiting tokens at a boundary (counted from 0)."""
    counter = len(state.slot) + boundary
    if state.used_bound[counter] + rows <= state.aux[boundary].size(0):
        return
    exact_counts_(state)
    table = state.aux_slot[boundary]
    held = torch.unique(table[table >= 0]).size(0)  # beams may share a slot
    state.freed[counter] = max(state.used_bound[counter] - held, 0)
    if state.freed[counter] * 16 > state.aux[boundary].size(0):
        compact_aux_(state, boundary)
    used = state.used_bound[counter]
    if used + rows <= state.aux[boundary].size(0):
        return
    # Decoding hardly ever adds waiting tokens, so a first prefill gets what it needs and no more.
    capacity = used + rows + (used // 16 if used > 0 else 0)
    state.aux[boundary] = _resized(state.aux[boundary], capacity, used)


def reserve_steps_(state: LazyState, spec: StoreSpec, steps: int, max_revive: int) -> None:
    """Room for so many fixed-shape steps of one token a sequence, so that none of them grows."""
    batch = state.length.size(0)
    for stage in range(len(state.slot)):
        reserve_kv_(state, spec, stage, batch * steps * (1 + stage * max_revive))
    for boundary in range(len(state.aux)):
        reserve_aux_(state, boundary, batch * steps * (1 + boundary * max_revive))


def count_step_(state: LazyState, max_revive: int) -> None:
    """What the host counts in a fixed-shape step of one token a sequence, where it did not run."""
    batch = state.length.size(0)
    for sequence in range(batch):
        state.host_length[sequence] += 1
        state.finished[sequence] += 1
    for stage in range(len(state.slot)):
        state.used_bound[stage] += batch * (1 + stage * max_revive)
    for boundary in range(len(state.aux)):
        state.used_bound[len(state.slot) + boundary] += batch * (1 + boundary * max_revive)


def take_slots_(state: LazyState, counter: int, place: Tensor) -> Tensor:
    """Hand out the next slots, one for every place that is not -1; -1 for the others. [R] int64.

    The caller has reserved the room. `counter` is a stage, or S + 1 + boundary.
    """
    valid = place >= 0
    slots = torch.cumsum(valid, 0) - 1 + state.used[counter]
    state.used[counter] += valid.sum()
    state.used_bound[counter] += place.size(0)
    return torch.where(valid, slots, -1)


def enter_stage_(state: LazyState, spec: StoreSpec, stage: int, place: Tensor) -> Tensor:
    """Slots for rows whose keys and values are about to be computed in a stage. [R] int64."""
    reserve_kv_(state, spec, stage, place.size(0))
    slots = take_slots_(state, stage, place)
    write_(state.slot[stage], place, slots)
    return slots


def put_waiting_(state: LazyState, boundary: int, place: Tensor, hidden: Tensor) -> None:
    """Rows [R, hidden] leave the step and wait at a boundary (counted from 0); -1 places do not."""
    reserve_aux_(state, boundary, place.size(0))
    slots = take_slots_(state, len(state.slot) + boundary, place)
    torch.ops.lazyllm.aux_scatter_(state.aux[boundary], slots, hidden)
    write_(state.aux_slot[boundary], place, slots)


def take_waiting_(state: LazyState, boundary: int, place: Tensor, exact: bool) -> Tensor:
    """Hidden states [R, hidden] of waiting tokens, which wait no more; zeros where place is -1.

    `exact`: no place is -1, so that the host knows how many slots become free. Otherwise they are
    counted when the store is full.
    """
    slots = read(state.aux_slot[boundary], place)
    hidden = torch.ops.lazyllm.aux_gather(state.aux[boundary], slots)
    write_(state.aux_slot[boundary], place, torch.full_like(place, -1))
    state.revived[boundary] += (place >= 0).sum()
    if exact:
        state.freed[len(state.slot) + boundary] += place.size(0)
    return hidden


def give_back_(state: LazyState) -> None:
    """Between steps: shrink Aux Caches of which more than a sixteenth is no longer held."""
    for boundary in range(len(state.aux)):
        if state.freed[len(state.slot) + boundary] * 16 > state.aux[boundary].size(0):
            compact_aux_(state, boundary)
