"""What `generate` does to a cache between steps: crop, reorder, repeat, select."""

from typing import List

import torch
from torch import Tensor

from .tables import LazyState


def crop_(state: LazyState, counts: List[int]) -> None:
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


def _rows_of(tables: List[Tensor], index: Tensor) -> List[Tensor]:
    return [table.index_select(0, index) for table in tables]


def select_sequences(state: LazyState, index: Tensor) -> LazyState:
    """The state of sequences index[0], index[1], … (int64, repeats allowed).

    Serves beams, repeats and subsets. Stores are shared with `state`, which must not be used any
    more: a slot belongs to every sequence whose table names it, and is never written twice.
    """
    order: List[int] = index.tolist()
    # A slot may have been dropped from every table: let compaction find out.
    dropped = torch.unique(index).size(0) < state.length.size(0)
    freed = list(state.used_bound if dropped else state.freed)
    return LazyState(
        keys=state.keys,
        values=state.values,
        slot=_rows_of(state.slot, index),
        aux=state.aux,
        aux_slot=_rows_of(state.aux_slot, index),
        importance=_rows_of(state.importance, index),
        active=[torch.empty_like(entry[:0]) for entry in state.active],
        active_offsets=[
            torch.zeros([len(order) + 1], dtype=torch.int64, device=index.device)
            for _ in state.active
        ],
        position=_rows_of(state.position, index),
        length=state.length.index_select(0, index),
        host_length=[state.host_length[place] for place in order],
        used=state.used,
        used_bound=state.used_bound,
        freed=freed,
        revived=state.revived,
        finished=[state.finished[place] for place in order],
    )
