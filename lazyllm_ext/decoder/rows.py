"""What a step knows of its rows: which token each one is, and who may still see it."""

from typing import NamedTuple

import torch
from torch import Tensor

from lazyllm_ext.state import LazyState, reserve_tokens_, table_columns, write_


class Rows(NamedTuple):
    """The tokens being computed, R rows of B sequences, packed; -1 marks an unused row."""

    index: Tensor  # [R] int64, token index in its sequence, ascending in each sequence
    place: Tensor  # [R] int64, the token's place in a [B, cap] table, flattened
    offsets: Tensor  # [B + 1] int64


class Keys(NamedTuple):
    """The tokens that are active in a stage, K entries of B sequences, packed; -1: unused."""

    index: Tensor  # [K] int64, token index
    place: Tensor  # [K] int64, place in a [B, cap] table, flattened
    slots: Tensor  # [K] int64, row of the stage's key and value stores
    offsets: Tensor  # [B + 1] int64
    bounds: list[int]  # per sequence, at most so many entries are used


class Stage(NamedTuple):
    """What the layers from one boundary to the next have in common in a step."""

    rows: Rows
    slots: Tensor  # [R] int64, where the rows' keys and values go in the layers' stores
    keys: Keys
    cos: list[Tensor]  # for each rotary embedding, [R, rotary_dim / 2]
    sin: list[Tensor]


class Tail(NamedTuple):
    """The last rows of each sequence, counted from its end: they are always among the rows."""

    sequence: Tensor  # [tail rows] int64
    back: Tensor  # [tail rows] int64, 1 for the last row of the sequence
    offsets: Tensor  # [B + 1] int64


class Step(NamedTuple):
    """What stays the same from the first layer of a step to the last."""

    window: Tail  # the queries that score
    last: Tail  # the rows whose logits are asked
    decay: Tensor  # [B, 1] float32, what is left of the old importance
    forgets: bool  # whether some sequence's old importance counts for nothing any more
    carried: Tensor  # [B · cap] float32 by token: scores of the boundaries so far; or empty
    protect_last: int
    fixed: bool  # one token a sequence, and shapes do not depend on the data


def offsets_of(counts: list[int], device: torch.device) -> Tensor:
    """[B + 1] int64: 0 and the running sum of counts."""
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    return torch.tensor(offsets, dtype=torch.int64, device=device)


def tail_of(counts: list[int], device: torch.device) -> Tail:
    """The last counts[b] rows of each sequence, in order."""
    sequence: list[int] = []
    back: list[int] = []
    for place, count in enumerate(counts):
        for distance in range(count, 0, -1):
            sequence.append(place)
            back.append(distance)
    return Tail(
        torch.tensor(sequence, dtype=torch.int64, device=device),
        torch.tensor(back, dtype=torch.int64, device=device),
        offsets_of(counts, device),
    )


def rows_of_tail(tail: Tail, rows: Rows) -> Tensor:
    """Where the tail's tokens are among the rows. [tail rows] int64."""
    return rows.offsets[1:].index_select(0, tail.sequence) - tail.back


def pick(rows: Rows, where: Tensor, tail: Tail) -> Rows:
    """The rows of the tail, which are at `where`."""
    return Rows(rows.index.index_select(0, where), rows.place.index_select(0, where), tail.offsets)


def begin_step(
    state: LazyState,
    positions: Tensor,
    new_counts: list[int],
    window: int,
    logits_to_keep: int,
    protect_last: int,
    accumulates: bool,
    fixes_decoding: bool,
) -> tuple[Step, Rows]:
    """Enter the new tokens (positions [rows], new_counts[b] of each sequence) into the tables."""
    device = positions.device
    longest, most, fewest = 0, 0, positions.size(0)
    for sequence, count in enumerate(new_counts):
        longest = max(longest, state.host_length[sequence] + count)
        most, fewest = max(most, count), min(fewest, count)
    reserve_tokens_(state, longest)
    columns = table_columns(state)

    new = torch.tensor(new_counts, dtype=torch.int64, device=device)
    offsets = offsets_of(new_counts, device)
    sequence_of = torch.repeat_interleave(new, output_size=positions.size(0))
    index = torch.arange(positions.size(0), device=device) + (
        state.length - offsets[:-1]
    ).index_select(0, sequence_of)
    rows = Rows(index, index + sequence_of * columns, offsets)
    write_(state.position[0], rows.place, positions)
    state.length.add_(new)
    for sequence, count in enumerate(new_counts):
        state.host_length[sequence] += count

    step = Step(
        window=tail_of([min(count, window) for count in new_counts], device),
        last=tail_of([min(count, logits_to_keep) for count in new_counts], device),
        decay=(1.0 - new.double() / window).clamp(min=0.0).float().unsqueeze(1),
        forgets=most >= window,
        carried=torch.zeros(
            [len(new_counts) * columns if accumulates else 0], dtype=torch.float32, device=device
        ),
        protect_last=protect_last,
        fixed=fixes_decoding and most == 1 and fewest == 1,
    )
    return step, rows


def last_protected(new_counts: list[int], window: int, logits_to_keep: int) -> int:
    """How many last tokens may not be dropped: the window's, and those whose logits are asked."""
    protect_last = 0
    for count in new_counts:
        if count > 0:
            mine = max(window, min(count, logits_to_keep))
            if protect_last > 0 and mine != protect_last:
                raise ValueError(
                    f"logits_to_keep: got {logits_to_keep}, expected at most the new tokens of "
                    f"every sequence of a batch ({count} in one of them)"
                )
            protect_last = mine
    return max(protect_last, window)


def all_keys(state: LazyState, new_counts: list[int], fixed: bool) -> Keys:
    """A_0: every token so far, straight from stage 0's table (its -1 entries are unused ones).

    A sequence without new tokens takes no step: none of its tokens is active.
    """
    columns = table_columns(state)
    batch = state.length.size(0)
    device = state.length.device
    index = torch.arange(columns, dtype=torch.int64, device=device)
    place = torch.arange(batch * columns, dtype=torch.int64, device=device)
    offsets = torch.arange(batch + 1, dtype=torch.int64, device=device) * columns
    slots = state.slot[0]
    bounds: list[int] = []
    for sequence, length in enumerate(state.host_length):
        bounds.append(columns if fixed else length)
        if new_counts[sequence] == 0:
            bounds[sequence] = 0
    if min(new_counts) == 0:
        takes_step = torch.tensor(new_counts, dtype=torch.int64, device=device) > 0
        slots = torch.where(takes_step.unsqueeze(1), slots, -1)
    return Keys(
        index if batch == 1 else index.repeat(batch), place, slots.view(-1), offsets, bounds
    )
