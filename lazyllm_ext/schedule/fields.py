"""Checks of single schedule fields, and the reading of JSON: one clear sentence for each fault."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

_LARGEST = 2**31 - 1


class _Twice(ValueError):
    """A JSON object gives one field twice."""


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    return reprlib.repr(value)


def integer(value: Any, where: str, low: int, expected: str) -> int:
    """`value` as an int of at least `low`, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{where}: expected {expected}, got {shown(value)}")
    whole = int(value)
    if not low <= whole <= _LARGEST:
        bound = f"at least {low}" if whole < low else f"at most {_LARGEST}"
        raise ValueError(f"{where}: expected {expected}, {bound}, got {shown(value)}")
    return whole


def number(value: Any, where: str, expected: str) -> float:
    """`value` as a finite float, or ValueError."""
    try:
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond every float
        pass
    raise ValueError(f"{where}: expected {expected}, got {shown(value)}")


def one_of(given: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The one field of `names` that is given, or ValueError."""
    present = [name for name in names if given.get(name) is not None]
    if len(present) != 1:
        got = " and ".join(present) or "none of them"
        raise ValueError(f"{where}: expected exactly one of {', '.join(names)}, got {got}")
    return present[0]


def known(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """ValueError for a field that is not in `names`."""
    unknown = [shown(name) for name in given if name not in names]
    if unknown:
        raise ValueError(
            f"{where}: expected only the fields {', '.join(names)}, got {', '.join(unknown)}"
        )


def decode(text: str, where: str) -> Any:
    """JSON text -> value. ValueError for other text, or for a field given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _Twice(f"{where}: expected each field once, got {shown(twice)} twice")
        return data

    try:
        return json.loads(text, object_pairs_hook=unique)
    except _Twice:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got other text ({error})") from error
