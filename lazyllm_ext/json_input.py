"""Input as JSON brings it: text is decoded, pydantic checks fields, a fault is one sentence.

    @checked("line")
    class Line:
        prompt: Annotated[str, Expects("a text")]
        window: Annotated[int, Field(ge=1), Expects("a number of queries")] = 1

    read_object(Line, decode('{"prompt": "a", "window": 0}', "f:1"), "f:1")
    # ValueError: f:1: window: expected a number of queries, at least 1, got 0

A validator, and `__post_init__` for what no field shows alone, raises a ValueError that says
"expected X, got Y"; or an InputError that names the field, too.
"""

from __future__ import annotations

import inspect
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs
from typing_extensions import dataclass_transform

T = TypeVar("T")

_MARK = "\ufeff"  # that some editors write before a text


class InputError(ValueError):
    """What is wrong with an input, in one sentence: "where: field: expected X, got Y".

    Args:
        field: its name; empty for the whole object.
        said: the rest of the sentence.
        where: of what input.
    """

    def __init__(self, field: str, said: str, where: str = ""):
        super().__init__(": ".join(part for part in (where, field, said) if part))
        self.field, self.said, self.where = field, said, where

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return InputError, (self.field, self.said, self.where)


def wrong(field: str, expected: str, got: Any, where: str = "") -> InputError:
    """The InputError of a field that has another value than expected."""
    return InputError(field, f"expected {expected}, got {shown(got)}", where)


class Expects(str):
    """What a field takes, in the words of the sentence; outermost in the field's `Annotated`.

    The bound that a number breaks is added where the words name no number. A field without such
    words expects its type as it is written.
    """


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def checked(
    where: str | Callable[[Mapping[str, Any]], str] = "",
    *,
    extra: Literal["forbid", "ignore"] = "forbid",
) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass of strict types; its constructor raises InputError.

    Args:
        where: what the constructor's sentences begin with, or what finds it in the arguments.
        extra: what `read_object` does with fields that the class does not have.
    """

    def make(kind: type[T]) -> type[T]:
        config = ConfigDict(strict=True, extra=extra, allow_inf_nan=False)
        made: Any = dataclass(frozen=True, config=config)(kind)
        signature = inspect.signature(made)

        @wraps(made.__init__)
        def construct(self: T, *args: Any, **named: Any) -> None:
            given = signature.bind(*args, **named).arguments
            _fill(self, given, where if isinstance(where, str) else where(given))

        made.__init__ = construct
        return made  # type: ignore[no-any-return]

    return make


def read_object(kind: type[T], data: Any, where: str, expected: str = "a JSON object") -> T:
    """Decoded JSON -> an object of a `checked` class.

    Raises:
        InputError: no object, or a field that is unknown, missing or wrong.
    """
    made = object.__new__(kind)
    _fill(made, given_fields(kind, data, where, expected), where)
    return made


def given_fields(
    kind: Any, data: Any, where: str, expected: str = "a JSON object"
) -> dict[str, Any]:
    """The fields of a `checked` class that decoded JSON gives, their values unchecked.

    Raises:
        InputError: no object, or a field that is unknown.
    """
    if not isinstance(data, Mapping):
        raise wrong("", expected, data, where)
    names = [own.name for own in fields(kind)]
    unknown = [shown(name) for name in data if name not in names]
    if unknown and kind.__pydantic_config__["extra"] == "forbid":
        only = ", ".join(names)
        raise InputError("", f"expected only the fields {only}, got {', '.join(unknown)}", where)
    return {name: data[name] for name in names if name in data}


def _fill(made: Any, given: Mapping[str, Any], where: str) -> None:
    """Sets the fields of a new object of a `checked` class."""
    values = ArgsKwargs((), dict(given))
    try:
        type(made).__pydantic_validator__.validate_python(values, self_instance=made)
    except ValidationError as error:
        raise _sentence(type(made), given, error, where) from None


def _sentence(
    kind: type, given: Mapping[str, Any], error: ValidationError, where: str
) -> InputError:
    """The first of pydantic's errors, in our words."""
    first = error.errors(include_url=False)[0]
    name, context = str(next(iter(first["loc"]), "")), first.get("ctx", {})
    if first["type"] == "value_error":  # what a validator raised
        own = context["error"]
        if isinstance(own, InputError):
            return InputError(own.field, own.said, where)
        return InputError(name, str(own), where)
    hint = get_type_hints(kind, include_extras=True)[name]
    said = [text for text in getattr(hint, "__metadata__", ()) if isinstance(text, Expects)]
    types = {own.name: str(own.type) for own in fields(kind)}  # as they are written
    expected = said[0] if said else types[name]
    if not any(map(str.isdigit, expected)):
        bounds = {"at least": context.get("ge"), "at most": context.get("le")}
        told = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
        expected = ", ".join([expected, *told])
    if name not in given:
        return InputError(name, f"expected {expected}, got nothing", where)
    return wrong(name, expected, given[name], where)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    return reprlib.repr(value)


def read_text(data: bytes, where: str) -> str:
    """The text of a file or a request: UTF-8; a byte order mark before it is not part of it.

    Raises:
        InputError: other bytes.
    """
    try:
        return data.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise InputError("", "expected UTF-8 text, got other bytes", where) from error


def read_json(path: str | os.PathLike[str], where: str) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: it cannot be read.
        InputError: it holds something else.
    """
    return decode(Path(path).read_bytes(), where)


def decode(text: str | bytes, where: str) -> Any:
    """JSON text, or its bytes in UTF-8 -> value.

    Raises:
        InputError: other text, or a field given twice.
    """
    text = read_text(text, where) if isinstance(text, bytes) else text.removeprefix(_MARK)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            names = Counter(name for name, _ in pairs)
            twice = next(name for name, count in names.items() if count > 1)
            raise InputError("", f"expected each field once, got {shown(twice)} twice", where)
        return data

    try:
        return json.loads(text, object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("", f"expected JSON, got other text ({error})", where) from error
