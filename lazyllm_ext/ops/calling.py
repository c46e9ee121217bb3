"""Calls an operator, and turns what it refuses into Python's own exceptions.

Which arguments there are, in which order and of which types, is read from the operator's schema
(csrc/library.cpp). What else an argument must be, the operators know (csrc/common/checks.h); what
they say of it in one sentence becomes a ``ValueError``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import fake, loading

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INT64 = (torch.int64,)
# The schema does not say dtypes. A tensor whose name ends with one of these words is int64, the
# others are float, but for a few.
INT64_NAMES = ("index", "offsets", "slots", "lengths", "candidates", "targets")
OTHER_DTYPES = {
    "importance": (torch.float32,),
    "source": FLOATS + INT64,
    "destination": FLOATS + INT64,
}

TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (Tensor,),
    "int": (int, torch.SymInt),  # torch.Sym*: a number that is being traced
    "float": (int, float, torch.SymInt, torch.SymFloat),
    "bool": (bool,),
    "str": (str,),
}


class Parameter(NamedTuple):
    """What an operator takes in one place."""

    type: str  # a key of TYPES; where it is a list, that of the elements
    is_list: bool
    may_be_none: bool  # where it is a list: its elements may
    dtypes: tuple[torch.dtype, ...]  # where it is a tensor


def call(op: str, *arguments: Any) -> Any:
    """Run the operator on these arguments, all that its schema has, in its order.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: the operator refuses an argument for another reason.
    """
    # First: PyTorch would convert numbers and flags, and a fake looks at no dtype.
    check(op, dict(zip(PARAMETERS[op], arguments, strict=True)))
    try:
        return getattr(torch.ops.lazyllm, op)(*arguments)
    except RuntimeError as error:
        sentence = str(error).partition("\n")[0]
        # decoder_layer_ passes on what the operators say that it is made of.
        if not re.match(r"lazyllm::\w+: ", sentence) or "inference only" in sentence:
            raise
        raise ValueError(sentence) from None


def check(op: str, arguments: dict[str, Any]) -> None:
    """Raise TypeError unless `arguments`, all or some of the operator's, have the right types.

    Tensors that are not int64 must have the dtype of the first one, but for those in lists: the
    operator has better names for them.
    """
    dtypes: tuple[torch.dtype, ...] = ()
    for name, value in arguments.items():
        parameter = PARAMETERS[op][name]
        if parameter.is_list:
            _check_list(op, name, value, parameter)
        elif value is not None or not parameter.may_be_none:
            check_type(op, name, value, parameter.type)
            if parameter.dtypes == INT64:
                _check_dtype(op, name, value, INT64)
            elif parameter.type == "Tensor":
                _check_dtype(op, name, value, dtypes or parameter.dtypes)
                dtypes = (value.dtype,)


def check_type(op: str, name: str, value: object, expected: str) -> None:
    """Raise TypeError unless `value` is of the expected one of `TYPES`; a bool is no number."""
    is_bool = isinstance(value, bool)
    if not isinstance(value, TYPES[expected]) or (is_bool and expected != "bool"):
        words = "a tensor" if expected == "Tensor" else expected
        raise _type_error(op, name, words, type(value).__name__)


def _check_dtype(op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise _type_error(op, name, expected, got)


def _check_list(op: str, name: str, tensors: Any, parameter: Parameter) -> None:
    if not isinstance(tensors, (list, tuple)):
        raise _type_error(op, name, "a list", type(tensors).__name__)
    for place, tensor in enumerate(tensors):
        if tensor is not None or not parameter.may_be_none:
            check_type(op, f"{name}[{place}]", tensor, parameter.type)
            _check_dtype(op, f"{name}[{place}]", tensor, parameter.dtypes)


def _type_error(op: str, name: str, expected: str, got: str) -> TypeError:
    return TypeError(f"lazyllm::{op}: {name}: expected {expected}, got {got}")


def _parameters(op: str) -> dict[str, Parameter]:
    """The parameters of the operator by their names, in the schema's order."""
    parameters = {}
    for argument in getattr(torch.ops.lazyllm, op).default._schema.arguments:
        # Such as Tensor, Optional[Tensor], List[Optional[Tensor]]
        *outer, kind = str(argument.type).rstrip("]").split("[")
        dtypes = INT64 if argument.name.endswith(INT64_NAMES) else FLOATS
        parameters[argument.name] = Parameter(
            type=kind,
            is_list="List" in outer,
            may_be_none="Optional" in outer,
            dtypes=OTHER_DTYPES.get(argument.name, dtypes) if kind == "Tensor" else (),
        )
    return parameters


loading.load()
PARAMETERS = {op: _parameters(op) for op in fake.FAKES}
