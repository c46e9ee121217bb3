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
        ValueError: a tensor is missing or too many, has another shape than a decoder of this spec
            gives it, or names a row that does not exist.
    """
    if "length" not in tensors or "keys.0" not in tensors:
        raise ValueError("expected the tensors of a saved state, got others")
    like = tensors["keys.0"]
    state = new_state(spec, tensors["length"].numel(), like.dtype, like.device)
    expected = {*to_tensors(state, spec)}
    if tensors.keys() != expected:
        odd = ", ".join(sorted(expected ^ tensors.keys()))
        raise ValueError(f"expected the tensors of a saved state, got too few or too many: {odd}")
    lengths: list[int] = tensors["length"].tolist()
    if max(lengths) > tensors["position.0"].shape[-1]:
        raise ValueError(f"length: got {lengths}, more tokens than there are columns")
    sizes = {"finished": len(state.finished), "freed": len(state.freed)}
    sizes |= {name: getattr(state, name).numel() for name in ("used", "revived")}
    for name, size in sizes.items():
        if tensors[name].numel() != size:
            raise ValueError(f"{name}: expected {size} numbers, got {tensors[name].numel()}")
    used: list[int] = tensors["used"].tolist()
    rows = _rows_of_stores(spec, used)
    for what in _LISTS:
        empty = getattr(state, what)
        for number in range(len(empty)):
            name = f"{what}.{number}"
            got = tensors[name]
            if got.dtype != empty[number].dtype or got.dim() != empty[number].dim():
                raise ValueError(f"{name}: got {got.dtype} of {got.dim()} dimensions")
            if name in rows and got.shape != (rows[name], *empty[number].shape[1:]):
                raise ValueError(f"{name}: got shape {list(got.shape)}")
            if what in _TABLES and got.shape != (len(lengths), max(lengths)):
                raise ValueError(f"{name}: got shape {list(got.shape)}")
            empty[number] = got
    for stage, table in enumerate(state.slot):
        _check_rows(f"slot.{stage}", table, used[stage])
    for boundary, table in enumerate(state.aux_slot):
        _check_rows(f"aux_slot.{boundary}", table, used[len(state.slot) + boundary])
    return state._replace(
        length=tensors["length"],
        host_length=lengths,
        used=tensors["used"],
        used_bound=used,
        freed=tensors["freed"].tolist(),
        revived=tensors["revived"],
        finished=tensors["finished"].tolist(),
    )


def _check_rows(name: str, table: Tensor, rows: int) -> None:
    if table.numel() > 0 and not -1 <= int(table.min()) <= int(table.max()) < rows:
        raise ValueError(f"{name}: names a row that does not exist")
