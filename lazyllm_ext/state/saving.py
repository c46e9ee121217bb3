"""A state as named tensors, and back: what a file holds."""

from __future__ import annotations

import torch
from torch import Tensor

from .tables import LazyState, StoreSpec, new_state

# Lists of a state with one tensor per layer, stage or boundary; tables have a column per token.
_TABLES = ("slot", "aux_slot", "importance", "position")
_LISTS = ("keys", "values", "aux", "active", "active_offsets", *_TABLES)
_WHOLE = ("length", "used", "revived")


def _rows_of_stores(spec: StoreSpec, used: list[int]) -> dict[str, int]:
    """How many rows each store has handed out, by its name."""
    rows: dict[str, int] = {}
    for stage, layers in enumerate(spec.stage_layers):
        for layer in layers:
            rows[f"keys.{layer}"] = rows[f"values.{layer}"] = used[stage]
    for boundary, handed_out in enumerate(used[len(spec.stage_layers) :]):
        rows[f"aux.{boundary}"] = handed_out
    return rows


def to_tensors(state: LazyState, spec: StoreSpec) -> dict[str, Tensor]:
    """Everything that a state holds, without spare room.

    `keys.3` are the keys of layer 3, `aux.0` the hidden states that wait at the first boundary.
    """
    columns = max(state.host_length, default=0)
    rows = _rows_of_stores(spec, state.used.tolist())
    tensors: dict[str, Tensor] = {name: getattr(state, name) for name in _WHOLE}
    for what in _LISTS:
        for number, tensor in enumerate(getattr(state, what)):
            name = f"{what}.{number}"
            kept = tensor[:, :columns] if what in _TABLES else tensor
            tensors[name] = kept[: rows[name]] if name in rows else kept
    tensors["finished"] = torch.tensor(state.finished)
    tensors["freed"] = torch.tensor(state.freed)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def from_tensors(spec: StoreSpec, tensors: dict[str, Tensor]) -> LazyState:
    """The state that `to_tensors` wrote, around the same tensors.

    Raises:
        ValueError: a tensor is missing or too many, has another dtype or shape than a decoder of
            this spec gives it, or holds what no state holds: slots that were not handed out,
            counts that contradict each other, importance below 0.
    """
    if "length" not in tensors or "keys.0" not in tensors:
        raise ValueError("expected the tensors of a saved state, got others")
    like, sequences = tensors["keys.0"], tensors["length"].numel()
    if sequences == 0:
        raise ValueError("length: expected 1 sequence or more, got 0")
    state = new_state(spec, sequences, like.dtype, like.device)
    _check_shapes(spec, to_tensors(state, spec), tensors)
    for what in _LISTS:
        entries = getattr(state, what)
        for number in range(len(entries)):
            entries[number] = tensors[f"{what}.{number}"]
    state = state._replace(
        length=tensors["length"],
        host_length=tensors["length"].tolist(),
        used=tensors["used"],
        used_bound=tensors["used"].tolist(),
        freed=tensors["freed"].tolist(),
        revived=tensors["revived"],
        finished=tensors["finished"].tolist(),
    )
    _check_slots(state)
    _check_active(state)
    for boundary, importance in enumerate(state.importance):  # sums of probabilities, or NaN
        _check_range(f"importance.{boundary}", importance, None)
    return state


def _check_shapes(spec: StoreSpec, empty: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Names, dtypes and shapes, as in `empty`, a state without tokens, but for the counts."""
    if tensors.keys() != empty.keys():
        odd = ", ".join(sorted(empty.keys() ^ tensors.keys()))
        raise ValueError(f"expected the tensors of a saved state, got too few or too many: {odd}")
    for name, like in empty.items():
        got = tensors[name]
        if got.dtype != like.dtype or got.dim() != like.dim():
            raise ValueError(
                f"{name}: expected {like.dim()}-dimensional {like.dtype}, "
                f"got {got.dim()}-dimensional {got.dtype}"
            )
        if "." not in name:
            _check_shape(name, got, list(like.shape))
    _check_counts(tensors)
    columns = int(tensors["length"].max())
    rows = _rows_of_stores(spec, tensors["used"].tolist())
    for name, like in empty.items():
        what, shape = name.partition(".")[0], list(like.shape)
        if name in rows:
            shape[0] = rows[name]
        elif what in _TABLES:
            shape[1] = columns
        if what != "active":  # as long as active_offsets says
            _check_shape(name, tensors[name], shape)


def _check_counts(tensors: dict[str, Tensor]) -> None:
    """Of tokens and of slots."""
    length, used, columns = tensors["length"], tensors["used"], tensors["position.0"].size(1)
    _check_range("length", length, torch.full_like(length, columns))
    if int(length.max()) != columns:
        raise ValueError(
            f"length: expected {columns} in the longest sequence, the columns of position.0, "
            f"got {int(length.max())}"
        )
    _check_range("finished", tensors["finished"], length)
    _check_range("used", used, None)
    # Each sequence of a beam search can free a slot that all share.
    _check_range("freed", tensors["freed"], used * (length.numel() + 1))
    _check_range("revived", tensors["revived"], None)


def _check_slots(state: LazyState) -> None:
    """Every token has slots that were handed out, and waits exactly where it is not computed."""
    stages = [(f"slot.{number}", table) for number, table in enumerate(state.slot)]
    waiting = [(f"aux_slot.{number}", table) for number, table in enumerate(state.aux_slot)]
    for (name, table), used in zip(stages + waiting, state.used_bound, strict=True):
        _check_range(name, table, torch.full_like(table, used - 1), least=-1)
        ascending = table.sort(dim=1).values
        twice = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
        if bool(twice.any()):
            sequence, place = twice.nonzero()[0].tolist()
            raise ValueError(
                f"{name}: expected each slot once in a sequence, got slot "
                f"{int(ascending[sequence, place])} twice in sequence {sequence}"
            )
    name, table = stages[0]
    columns = torch.arange(table.size(1), device=table.device)
    expected = "slots for the tokens that length counts and no others"
    _check_same(name, table >= 0, columns < state.length.unsqueeze(1), expected)
    for boundary, (name, table) in enumerate(waiting):
        (before, reached), (after, passed) = stages[boundary], stages[boundary + 1]
        _check_same(
            after, passed >= 0, (passed >= 0) & (reached >= 0), f"slots for tokens of {before} only"
        )
        _check_same(
            name, table >= 0, (reached >= 0) & (passed < 0),
            f"slots for the tokens of {before} without one in {after} and no others",
        )  # fmt: skip


def _check_active(state: LazyState) -> None:
    for boundary, (index, offsets) in enumerate(
        zip(state.active, state.active_offsets, strict=True)
    ):
        # A crop leaves them as they were, so they may be above the length.
        _check_range(f"active.{boundary}", index, None, least=-1)
        ends: list[int] = offsets.tolist()
        if ends != sorted(ends) or (ends[0], ends[-1]) != (0, index.numel()):
            raise ValueError(
                f"active_offsets.{boundary}: expected ascending offsets from 0 to "
                f"{index.numel()}, the size of active.{boundary}, got {ends}"
            )


def _check_shape(name: str, got: Tensor, shape: list[int]) -> None:
    if list(got.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {list(got.shape)}")


def _check_range(name: str, got: Tensor, most: Tensor | None, least: int = 0) -> None:
    """Every element is `least` or more, and at most its one of `most`."""
    outside = got < least if most is None else (got < least) | (got > most)
    if not bool(outside.any()):
        return
    place = tuple(outside.nonzero()[0].tolist())
    bounds = f"{least} or more" if most is None else f"{least} to {int(most[place])}"
    raise ValueError(f"{name}: expected {bounds}, got {got[place].item()} at place {list(place)}")


def _check_same(name: str, got: Tensor, wanted: Tensor, expected: str) -> None:
    """got, wanted: [B, columns] bool, which tokens have a slot."""
    if not torch.equal(got, wanted):
        sequence, token = (got != wanted).nonzero()[0].tolist()
        has = "one" if bool(got[sequence, token]) else "none"
        raise ValueError(
            f"{name}: expected {expected}, got {has} for token {token} of sequence {sequence}"
        )
