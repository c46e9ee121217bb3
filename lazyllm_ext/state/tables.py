"""The state of one generation: token tables, key/value stores, Aux Caches, importance vectors.

Everything is a tensor or a list in a NamedTuple, and every function is a plain function over it, so
that TorchScript and torch.export can take the decoder loop. Lists are changed in place when a store
or a table grows; nothing else in the project writes to these tensors.

A *slot* is a row of a flat store that all sequences of a batch share. A token table says in which
slot a token is, so rows are appended in the order in which they are computed, padding is never
stored, and the sequences of a beam search may share slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LazyState(NamedTuple):
    """What one generation knows. B sequences, S boundaries, stages 0 … S, `cap` table columns."""

    # One entry per layer: [slots, num_kv_heads, head_dim].
    keys: list[Tensor]
    values: list[Tensor]
    # One entry per stage 0 … S: [B, cap] int64, token -> slot of its keys and values, -1: none.
    slot: list[Tensor]
    # One entry per boundary (1 … S at place 0 … S-1): the hidden states that wait, [slots, hidden],
    # and [B, cap] int64, token -> slot in it; -1: not waiting.
    aux: list[Tensor]
    aux_slot: list[Tensor]
    # One entry per boundary: [B, cap] float32, the importance vector I_s.
    importance: list[Tensor]
    # One entry per boundary: A_s of the last step as packed token indices, and its offsets [B + 1].
    active: list[Tensor]
    active_offsets: list[Tensor]
    # A single entry: [B, cap] int64, the position_ids of every token so far.
    position: list[Tensor]
    # [B] int64, n of each sequence; the host's copy of it.
    length: Tensor
    host_length: list[int]
    # Slots handed out, stages 0 … S first, then boundaries 1 … S: int64 on the device, and the
    # host's upper bound, which is exact except after fixed-shape steps.
    used: Tensor
    used_bound: list[int]
    # Slots handed out that no token holds any more (upper bound), same order as `used`.
    freed: list[int]
    # [S] int64 on the device: how many tokens each boundary has revived.
    revived: Tensor
    # How many tokens of each sequence were computed to the end of the last layer.
    finished: list[int]


class StoreSpec(NamedTuple):
    """Shapes of a decoder's stores, all that `state` needs to know of a model."""

    stage_layers: list[list[int]]  # per stage, the layers whose stores it owns
    num_kv_heads: list[int]
    head_dim: list[int]
    hidden_size: int
    num_boundaries: int


def new_state(spec: StoreSpec, batch: int, dtype: torch.dtype, device: torch.device) -> LazyState:
    """An empty state for `batch` sequences; stores get memory when rows arrive."""
    stages = spec.num_boundaries + 1
    boundaries = spec.num_boundaries
    keys: list[Tensor] = []
    for layer, heads in enumerate(spec.num_kv_heads):
        keys.append(torch.empty([0, heads, spec.head_dim[layer]], dtype=dtype, device=device))
    values = [torch.empty_like(key) for key in keys]
    table = torch.empty([batch, 0], dtype=torch.int64, device=device)
    return LazyState(
        keys=keys,
        values=values,
        slot=[table.clone() for _ in range(stages)],
        aux=[
            torch.empty([0, spec.hidden_size], dtype=dtype, device=device)
            for _ in range(boundaries)
        ],
        aux_slot=[table.clone() for _ in range(boundaries)],
        importance=[
            torch.empty([batch, 0], dtype=torch.float32, device=device) for _ in range(boundaries)
        ],
        active=[torch.empty([0], dtype=torch.int64, device=device) for _ in range(boundaries)],
        active_offsets=[
            torch.zeros([batch + 1], dtype=torch.int64, device=device) for _ in range(boundaries)
        ],
        position=[table.clone()],
        length=torch.zeros([batch], dtype=torch.int64, device=device),
        host_length=[0 for _ in range(batch)],
        used=torch.zeros([stages + boundaries], dtype=torch.int64, device=device),
        used_bound=[0 for _ in range(stages + boundaries)],
        freed=[0 for _ in range(stages + boundaries)],
        revived=torch.zeros([boundaries], dtype=torch.int64, device=device),
        finished=[0 for _ in range(batch)],
    )


def table_columns(state: LazyState) -> int:
    """`cap`: how many tokens of a sequence the tables have room for."""
    return state.position[0].size(1)


def read(table: Tensor, place: Tensor) -> Tensor:
    """table.view(-1)[place], and -1 where place is -1."""
    found = torch.ops.lazyllm.aux_gather(table.view(-1, 1), place).view(-1)
    return torch.where(place >= 0, found, place)


def write_(table: Tensor, place: Tensor, entries: Tensor) -> None:
    """table.view(-1)[place] = entries, skipping places that are -1."""
    torch.ops.lazyllm.aux_scatter_(table.view(-1, 1), place, entries.view(-1, 1))


def _widen(table: Tensor, columns: int, fill: float) -> Tensor:
    wide = torch.empty([table.size(0), columns], dtype=table.dtype, device=table.device)
    wide.fill_(fill)
    wide[:, : table.size(1)] = table
    return wide


def reserve_tokens_(state: LazyState, longest: int) -> None:
    """Give every table room for `longest` tokens, and an eighth more when it has to grow."""
    columns = table_columns(state)
    if longest <= columns:
        return
    if columns > 0:
        longest = longest + longest // 8
    widen_tables_(state, (longest + 63) // 64 * 64)


def widen_tables_(state: LazyState, columns: int) -> None:
    """Give every table `columns` columns, no fewer than it has."""
    for stage in range(len(state.slot)):
        state.slot[stage] = _widen(state.slot[stage], columns, -1.0)
    for boundary in range(len(state.aux_slot)):
        state.aux_slot[boundary] = _widen(state.aux_slot[boundary], columns, -1.0)
        state.importance[boundary] = _widen(state.importance[boundary], columns, 0.0)
    state.position[0] = _widen(state.position[0], columns, 0.0)


def computed(state: LazyState, stage: int, sequence: int) -> Tensor:
    """C_stage: token indices of `sequence` whose keys and values exist in that stage, ascending."""
    row = state.slot[stage][sequence, : state.host_length[sequence]]
    return torch.nonzero(row >= 0).view(-1)


def waiting(state: LazyState, boundary: int, sequence: int) -> Tensor:
    """Tokens that wait in the Aux Cache of boundary 1 … S: C_{s-1} without C_s, ascending."""
    row = state.aux_slot[boundary - 1][sequence, : state.host_length[sequence]]
    return torch.nonzero(row >= 0).view(-1)


def active(state: LazyState, boundary: int, sequence: int) -> Tensor:
    """A_s of the last step at boundary 1 … S, ascending token indices."""
    offsets = state.active_offsets[boundary - 1]
    begin, end = int(offsets[sequence].item()), int(offsets[sequence + 1].item())
    index = state.active[boundary - 1][begin:end]
    return index[index >= 0]


def computed_per_stage(state: LazyState) -> list[list[int]]:
    """|C_s| of each sequence, one list per stage 0 … S."""
    return _entries(state.slot)


def waiting_per_boundary(state: LazyState) -> list[list[int]]:
    """Tokens of each sequence that wait, one list per boundary 1 … S."""
    return _entries(state.aux_slot)


def _entries(tables: list[Tensor]) -> list[list[int]]:
    """How many tokens of each sequence have a slot in each table."""
    counts: list[list[int]] = []
    for table in tables:
        row: list[int] = (table >= 0).sum(dim=1).tolist()
        counts.append(row)
    return counts


def revived(state: LazyState) -> list[int]:
    """Tokens revived since the start, per boundary 1 … S, all sequences together."""
    counts: list[int] = state.revived.tolist()
    return counts


def kv_nbytes(state: LazyState) -> int:
    """Bytes of memory that the key and value stores hold, spare room included."""
    return _nbytes(state.keys) + _nbytes(state.values)


def aux_nbytes(state: LazyState) -> int:
    """Bytes of memory that the Aux Caches hold, spare room included."""
    return _nbytes(state.aux)


def table_nbytes(state: LazyState) -> int:
    """Bytes of the token tables and importance vectors."""
    return _nbytes(state.position + state.slot + state.aux_slot + state.importance)


def _nbytes(tensors: list[Tensor]) -> int:
    return sum([tensor.numel() * tensor.element_size() for tensor in tensors])
