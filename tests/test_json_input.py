"""JSON input: what a checked class takes, and what a fault is called."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, replace
from typing import Annotated, Any

import pytest
from pydantic import Field

from lazyllm_ext.json_input import Expects, InputError, checked, decode, read_object


@checked(lambda given: f"line {given['name']}")
class Line:
    """One field of each kind."""

    name: str
    window: Annotated[int, Field(ge=1, le=9), Expects("a number of queries")] = 1
    part: Annotated[float, Field(ge=0, le=1), Expects("a part from 0 to 1")] = 0.5
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.name == "no":
            raise InputError("name", "expected another one")


@checked(extra="ignore")
class Open:
    """Others are left out."""

    name: str = "a"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([1], "expected a JSON object, got [1]"),
        ({"x": 1, "y": 2}, "expected only the fields name, window, part, ids, got 'x', 'y'"),
        ({}, "name: expected str, got nothing"),
        ({"name": 3}, "name: expected str, got 3"),
        ({"name": "no"}, "name: expected another one"),
        ({"name": "a", "window": "3"}, "window: expected a number of queries, got '3'"),
        ({"name": "a", "window": True}, "window: expected a number of queries, got True"),
        ({"name": "a", "window": 0}, "window: expected a number of queries, at least 1, got 0"),
        ({"name": "a", "window": 10}, "window: expected a number of queries, at most 9, got 10"),
        ({"name": "a", "part": 2}, "part: expected a part from 0 to 1, got 2"),
        ({"name": "a", "part": float("nan")}, "part: expected a part from 0 to 1, got nan"),
        ({"name": "a", "ids": [1, "2"]}, "ids: expected list[int], got [1, '2']"),
    ],
)
def test_one_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        read_object(Line, data, "f:1")
    assert str(raised.value) == f"f:1: {sentence}"
    assert raised.value.field == (sentence.partition(":")[0] if ": " in sentence else "")


def test_from_python() -> None:
    line = Line("a", 2)
    assert (line.window, replace(line, window=3).window) == (2, 3)
    assert line == read_object(Line, decode('{"name": "a", "window": 2}', "f:1"), "f:1")
    with pytest.raises(InputError, match=r"^line a: window: expected a number of queries, at l"):
        replace(line, window=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        Line("a", x=1)  # type: ignore[call-arg]
    with pytest.raises(FrozenInstanceError):
        line.window = 3  # type: ignore[misc]


def test_others_are_ignored_where_a_class_says_so() -> None:
    assert read_object(Open, {"name": "b", "\ud800": 1, 3: 4}, "f:1") == Open("b")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": {"b": 1, "b": 2}}', "f:1: expected each field once, got 'b' twice"),
        ("{", "f:1: expected JSON, got other text ("),
        (b"\xff", "f:1: expected UTF-8 text, got other bytes"),
        ("{}".encode("utf-16"), "f:1: expected UTF-8 text, got other bytes"),
        ("[" * 100_000, "f:1: expected JSON, got other text ("),
    ],
)
def test_decode(text: str | bytes, sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        decode(text, "f:1")
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_fault_travels(again: Callable[[InputError], InputError]) -> None:
    """From a worker process, say."""
    fault = InputError("window", "expected 1, got 2", "f:1")
    same = again(fault)
    assert str(same) == str(fault) == "f:1: window: expected 1, got 2"
    assert (same.field, same.said, same.where) == ("window", "expected 1, got 2", "f:1")


@pytest.mark.parametrize("text", ["\ufeff[1]", "\ufeff[1]".encode(), "[1]", b"[1]"])
def test_a_byte_order_mark_is_not_part_of_a_text(text: str | bytes) -> None:
    assert decode(text, "f:1") == [1]


def test_only_the_first_mark_is_one() -> None:
    with pytest.raises(InputError):
        decode("\ufeff\ufeff[1]", "f:1")
