"""Turns a wrong argument into Python's own exceptions.

What an argument must be is known to the operators (csrc/common/checks.h), and said there in one
sentence. Types are looked at here, since PyTorch would answer for some of them itself; the rest of
the sentences pass through as ``ValueError``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "FLOATS",
    "INDEX",
    "all_tokens",
    "boolean",
    "call",
    "floats",
    "indices",
    "integer",
    "number",
    "offsets_or_one",
    "scale_or_default",
    "targets_or_keep",
    "tensor",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDEX = (torch.int64,)


def tensor(op: str, argument: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless `value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise _type_error(op, argument, "a tensor", type(value).__name__)
    if value.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise _type_error(op, argument, expected, str(value.dtype).removeprefix("torch."))


def floats(op: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all `tensors` are float and have the first one's dtype."""
    dtypes: tuple[torch.dtype, ...] = FLOATS
    for argument, value in tensors.items():
        tensor(op, argument, value, dtypes)
        dtypes = (value.dtype,)


def indices(op: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all `tensors` are int64."""
    for argument, value in tensors.items():
        tensor(op, argument, value, INDEX)


def integer(op: str, argument: str, value: object) -> None:
    """Raise TypeError unless `value` is an int (or an int that is being traced)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise _type_error(op, argument, "int", type(value).__name__)


def number(op: str, argument: str, value: object) -> None:
    """Raise TypeError unless `value` is a float or an int."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise _type_error(op, argument, "float", type(value).__name__)


def boolean(op: str, argument: str, value: object) -> None:
    """Raise TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise _type_error(op, argument, "bool", type(value).__name__)


def text(op: str, argument: str, value: object) -> None:
    """Raise TypeError unless `value` is a str."""
    if not isinstance(value, str):
        raise _type_error(op, argument, "str", type(value).__name__)


def offsets_or_one(op: str, argument: str, flat: Tensor, offsets: Tensor | None) -> Tensor:
    """The offsets, or where there are none, those of one sequence that has all of `flat`."""
    if offsets is not None:
        return offsets
    tensor(op, argument, flat, FLOATS + INDEX)
    # A scalar has no size; the operator refuses it by its dimensions.
    size = flat.shape[0] if flat.dim() else 0
    return torch.arange(2, dtype=torch.int64, device=flat.device) * size


def scale_or_default(op: str, query: Tensor, scale: float | None) -> float:
    """The scale, or 1 / sqrt(D)."""
    if scale is not None:
        number(op, "scale", scale)
        return scale
    head_dim = query.shape[-1] if query.dim() else 0
    return float(head_dim) ** -0.5 if head_dim else 1.0


def all_tokens(
    op: str, importance: Tensor, lengths: Tensor, candidate_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every token of every sequence as a candidate, -1 behind each sequence's end."""
    if candidate_offsets is not None:
        raise ValueError(
            f"lazyllm::{op}: candidate_offsets: expected None without candidates, got a tensor"
        )
    if importance.dim() != 2:
        raise ValueError(
            f"lazyllm::{op}: importance: expected 2 dimensions [B, C], got {importance.dim()}"
        )
    batch, columns = importance.shape
    if lengths.shape != (batch,):
        raise ValueError(
            f"lazyllm::{op}: lengths: expected shape [{batch}], got {list(lengths.shape)}"
        )
    index = torch.arange(columns, device=importance.device)
    candidates = torch.where(index < lengths[:, None], index, -1).view(-1)
    return candidates, torch.arange(batch + 1, device=importance.device) * columns


def targets_or_keep(op: str, lengths: Tensor, targets: Tensor | None, keep: float | None) -> Tensor:
    """How many tokens to take, in either spelling."""
    if keep is None:
        if targets is None:
            raise ValueError(f"lazyllm::{op}: targets: expected targets or keep, got neither")
        return targets
    if targets is not None:
        raise ValueError(f"lazyllm::{op}: targets: expected targets or keep, got both")
    number(op, "keep", keep)
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"lazyllm::{op}: keep: expected a number in (0, 1], got {keep}")
    return torch.ceil(lengths.double() * keep - 1e-9).clamp(min=0).long()


def call(op: str, *arguments: object) -> Any:
    """Run the operator, and raise what it says about an argument as ValueError."""
    try:
        return getattr(torch.ops.lazyllm, op)(*arguments)
    except RuntimeError as error:
        sentence = str(error).partition("\n")[0]
        # decoder_layer_ passes on what the operators say that it is made of.
        if not re.match(r"lazyllm::\w+: ", sentence) or "inference only" in sentence:
            raise
        raise ValueError(sentence) from None


def _type_error(op: str, argument: str, expected: str, got: str) -> TypeError:
    return TypeError(f"lazyllm::{op}: {argument}: expected {expected}, got {got}")
