"""What is done to a cache between steps: crop, reorder, repeat, select, fork."""

import copy

import torch
from torch import Tensor

from .stores import exact_counts_
from .tables import LazyState, StoreSpec


def crop_(state: LazyState, counts: list[int]) -> None:
    """Remove the newest counts[b] tokens of each sequence.

    What their queries added to the importance of other tokens stays, and tokens they revived stay
    computed, so decoding after a crop may differ from never having seen them when keep < 1.

    Raises:
        ValueError: a count is negative or larger than the sequence.
    """
    for sequence, count in enumerate(counts):
        if count < 0 or count > state.host_length[sequence]:
            raise ValueError(
                f"crop: counts[{sequence}]: expected 0 to {state.host_length[sequence]}, the "
                f"sequence's length, got {count}"
            )
    for sequence, count in enumerate(counts):
        length = state.host_length[sequence]
        begin = length - count
        for stage in range(len(state.slot)):
            row = state.slot[stage][sequence, begin:length]
            state.freed[stage] += int((row >= 0).sum().item())
            row.fill_(-1)
        for boundary in range(len(state.aux_slot)):
            row = state.aux_slot[boundary][sequence, begin:length]
            state.freed[len(state.slot) + boundary] += int((row >= 0).sum().item())
            row.fill_(-1)
            state.importance[boundary][sequence, begin:length].fill_(0.0)
        state.host_length[sequence] = begin
        state.finished[sequence] = max(state.finished[sequence] - count, 0)
        state.length[sequence] = begin


def _rows_of(tables: list[Tensor], index: Tensor) -> list[Tensor]:
    return [table.index_select(0, index) for table in tables]


def select_sequences(state: LazyState, index: Tensor) -> LazyState:
    """The state of sequences index[0], index[1], … (int64, repeats allowed).

    Serves beams, repeats and subsets. Stores are shared with `state`, which must not be used any
    more: a slot belongs to every sequence whose table names it, and is never written twice.
    """
    order: list[int] = index.tolist()
    # A slot may have been dropped from every table: let compaction find out.
    dropped = torch.unique(index).size(0) < state.length.size(0)
    return state._replace(
        slot=_rows_of(state.slot, index),
        aux_slot=_rows_of(state.aux_slot, index),
        importance=_rows_of(state.importance, index),
        active=[torch.empty_like(entry[:0]) for entry in state.active],
        active_offsets=[offsets.new_zeros([len(order) + 1]) for offsets in state.active_offsets],
        position=_rows_of(state.position, index),
        length=state.length.index_select(0, index),
        host_length=[state.host_length[place] for place in order],
        freed=list(state.used_bound if dropped else state.freed),
        finished=[state.finished[place] for place in order],
    )


def fork_state(state: LazyState, spec: StoreSpec) -> LazyState:
    """A state that goes on from here by itself, as the given one may.

    Nothing is copied but tables: no slot is written twice, so both share the rows that are there.
    The fork's stores have no room, so that its next rows make it copy them into stores of its own;
    the given state may have some, behind the shared rows.
    """
    exact_counts_(state)
    used = state.used_bound
    keys, values = list(state.keys), list(state.values)
    for stage, layers in enumerate(spec.stage_layers):
        for layer in layers:
            keys[layer] = keys[layer][: used[stage]]
            values[layer] = values[layer][: used[stage]]
    aux = [store[: used[len(state.slot) + number]] for number, store in enumerate(state.aux)]
    tables = copy.deepcopy(state._replace(keys=[], values=[], aux=[]))
    return tables._replace(keys=keys, values=values, aux=aux)
