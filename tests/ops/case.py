"""What a case is; cases.py has the table of them.

A case builds its operator's arguments, by name and in the schema's order, the same ones each time.
Rows of stores that no slot names hold NaN, so a kernel that reads them is found out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import builders
from .builders import FLOATS, Arguments

INT64 = (torch.int64,)
INF = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    op: str
    name: str
    options: dict[str, Any]
    smoke: bool  # also run where the whole table would take too long
    dtypes: tuple[torch.dtype, ...]
    edit: Callable[[Arguments], None] | None

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def arguments(self, dtype: torch.dtype, device: str = "cpu") -> Arguments:
        """Fresh arguments; strides and storage offsets are the same on every device."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        arguments = builders.BUILDERS[self.op](generator, dtype, **self.options)
        if self.edit is not None:
            self.edit(arguments)
        return moved(arguments, device)


def moved(arguments: Arguments, device: str) -> Arguments:
    return {
        name: move(value, device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def move(tensor: Tensor, device: str) -> Tensor:
    """The tensor and all of its storage on `device`: views of larger tensors stay such views."""
    if tensor.device.type == device:
        return tensor
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


CASES: list[Case] = []
HEADS = ((2, 2), (3, 1), (7, 1), (8, 1), (6, 2))  # H, Hkv: groups of 1, 3, 7 and 8
DIMS = (64, 80, 96, 128, 256)
# Around the sizes of the blocks that kernels work in.
SIZES = (2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)


def case(
    op: str,
    name: str,
    *,
    smoke: bool = False,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    edit: Callable[[Arguments], None] | None = None,
    **options: Any,
) -> None:
    CASES.append(Case(op, name, options, smoke, dtypes, edit))


def put(argument: str, place: Any, value: float) -> Callable[[Arguments], None]:
    """An edit: arguments[argument][place] = value."""

    def edit(arguments: Arguments) -> None:
        arguments[argument][place] = value

    return edit


def put_key(
    key: int,
    value: float,
    store: str = "key_store",
    head: Any = slice(None),
    dim: Any = slice(None),
) -> Callable[[Arguments], None]:
    """An edit: overwrite what is stored of one key."""

    def edit(arguments: Arguments) -> None:
        arguments[store][arguments["key_slots"][key], head, dim] = value

    return edit


def put_logit(key: Any, value: float) -> Callable[[Arguments], None]:
    """An edit: every query's logit for these keys becomes `value`, an infinity."""

    def edit(arguments: Arguments) -> None:
        arguments["query"][..., 0] = 1.0
        arguments["key_store"][arguments["key_slots"][key], :, 0] = value

    return edit


def logits_from(first: float) -> Callable[[Arguments], None]:
    """An edit: the keys' logits go from `first` to its opposite in equal steps, times scale · 8.

    Where they rise, the running maximum never rests.
    """

    def edit(arguments: Arguments) -> None:
        arguments["query"][..., 0] = 8.0
        slots = arguments["key_slots"]
        logits = torch.linspace(first, -first, slots.numel())
        arguments["key_store"][slots, :, 0] = logits.to(arguments["query"].dtype)[:, None]

    return edit
