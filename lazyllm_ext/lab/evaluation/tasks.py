"""Tasks: items in JSON lines, one object a line. A broken line is named and left out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from lazyllm_ext.json_input import (
    Expects,
    InputError,
    checked,
    decode,
    read_object,
    read_text,
    shown,
    wrong,
)
from lazyllm_ext.lab.tools.files import os_error_as

from .metrics import METRICS, WITH_CLASSES


def _or(empty: Any) -> BeforeValidator:
    """JSON's null is the empty one."""
    return BeforeValidator(lambda given: empty if given is None else given)


def _tuple(given: Any) -> Any:
    """JSON's list, which a frozen item holds as a tuple."""
    return tuple(given) if isinstance(given, list) else given


Text = Annotated[str, Field(min_length=1), Expects("a text")]
Texts = Annotated[tuple[str, ...], BeforeValidator(_tuple), Expects("a list of texts")]
# Of a text with a bound pydantic refuses halves of surrogate pairs, as every tokenizer does.
OptionalText = Annotated[str, Field(min_length=0), _or(""), Expects("a text")]
OptionalTexts = Annotated[Texts, _or(())]
Question = Annotated[str | None, AfterValidator(lambda text: text or None), Expects("a text")]
Truth = Annotated[bool, Expects("true or false")]
_METRIC, _COUNT = f"one of {', '.join(METRICS)}", Expects("a whole number of at least 0")


@checked("item", extra="ignore")
class Item:
    """One prompt and what a right answer is.

    Attributes:
        id: unique among all items of a run.
        task: name of the data set; by default that of the file.
        category: what tasks are averaged in; by default the task.
        prompt: the whole user text.
        answers: accepted answers, the best one counts.
        metric: one of METRICS.
        max_new_tokens: longest answer; 0 for nll, which generates none.
        question: the question alone, as it stands in the prompt; None where there is none.
        also_metrics: reported beside `metric`.
        chat: whether the prompt is a user's turn in the chat template, if there is one.
        answer_prefix: text that may be appended to the prompt where no template is used.
        classes: what `classification` and `classes_first_line` look for.
        target_tokens: nominal length; None where there is none.
    """

    id: Text
    task: Annotated[str, Expects("a text")]
    category: Annotated[str, Expects("a text")]
    prompt: Text
    answers: Texts
    metric: Annotated[str, Expects(_METRIC)]
    max_new_tokens: Annotated[int, Field(ge=0), _COUNT]
    question: Question = None
    also_metrics: OptionalTexts = ()
    chat: Truth = False
    answer_prefix: OptionalText = ""
    classes: OptionalTexts = ()
    target_tokens: Annotated[int | None, Field(ge=0), _COUNT] = None


@dataclass(frozen=True)
class Tasks:
    """What was read: the items in the order of files and lines, and a sentence per broken line."""

    items: tuple[Item, ...]
    faults: tuple[str, ...]


def read_tasks(paths: Iterable[str | os.PathLike[str]]) -> Tasks:
    """Read files of JSON lines, and folders of `*.jsonl` files (by name).

    Raises:
        ValueError: a path that cannot be read, a folder without such a file, or not one good item.
    """
    return collect(
        "tasks", ((file, partial(parse_item, task=file.stem)) for file in files_of(paths, "tasks"))
    )


def collect(name: str, files: Iterable[tuple[Path, Callable[[str, str], Item]]]) -> Tasks:
    """The items of files of JSON lines, each file with what makes an item of a line.

    Args:
        name: of what is read, for messages.
        files: each with a function of a line and of its file and number, which raises ValueError.

    Raises:
        ValueError: a file that cannot be read, or not one good item.
    """
    items: dict[str, Item] = {}
    faults: list[str] = []
    for file, parse in files:
        with os_error_as(f"{name}: cannot read {str(file)!r}"):
            lines = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                item = parse(read_text(line, where), where)
                if item.id in items:
                    said = f"expected a new one, got {shown(item.id)} again"
                    raise InputError("id", said, where)
            except ValueError as error:
                faults.append(str(error))
            else:
                items[item.id] = item
    if not items:
        first = f"; the first fault: {faults[0]}" if faults else ""
        raise ValueError(f"{name}: expected at least one item, got none{first}")
    return Tasks(tuple(items.values()), tuple(faults))


def choose(items: Sequence[Item], lengths: Sequence[int] = (), limit: int | None = None) -> Tasks:
    """The items of these nominal lengths, at most `limit` of each task and length, in their order.

    Args:
        lengths: values of `target_tokens`; none for all items.

    Raises:
        ValueError: a length that no item has.
    """
    for length in lengths:
        if not any(item.target_tokens == length for item in items):
            have = sorted({item.target_tokens for item in items if item.target_tokens is not None})
            got = ", ".join(map(str, have)) or "none with target_tokens"
            raise ValueError(f"lengths: got {length}, expected one of the items': {got}")
    taken: dict[tuple[str, int | None], int] = {}
    chosen: list[Item] = []
    for item in items:
        key = (item.task, item.target_tokens)
        if lengths and item.target_tokens not in lengths:
            continue
        taken[key] = taken.get(key, 0) + 1
        if limit is None or taken[key] <= limit:
            chosen.append(item)
    return Tasks(tuple(chosen), ())


def decode_line(text: str, where: str) -> Any:
    """A line's JSON -> value.

    Raises:
        InputError: other text, or a field with half of a surrogate pair, which no tokenizer takes.
    """
    data = decode(text, where)
    if isinstance(data, Mapping) and "\\ud" in text.lower():
        for name, value in data.items():
            try:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                said = "expected text, got half of a surrogate pair"
                raise InputError(ascii(name)[1:-1], said, where) from None
    return data


def parse_item(text: str, where: str, task: str) -> Item:
    """One line -> an item.

    Args:
        where: file and line, for messages.
        task: the name that an item without `task` gets.

    Raises:
        ValueError: not a JSON object, or a field that is missing or wrong: field, expected, got.
    """
    data = decode_line(text, where)
    if isinstance(data, Mapping):
        generated = {"max_new_tokens": 0} if data.get("metric") == "nll" else {}
        data = {"task": task, "category": data.get("task", task), **generated, **data}
    item = read_object(Item, data, where)
    _check_together(item, where)
    return item


def _check_together(item: Item, where: str) -> None:
    """What no field shows alone, and a prompt without an answer need not have."""
    if item.metric not in METRICS:
        raise wrong("metric", _METRIC, item.metric, where)
    if not item.answers:
        raise InputError("answers", "expected at least one answer, got none", where)
    for metric in item.also_metrics:
        if metric not in METRICS or metric == "nll":
            known = ", ".join(name for name in METRICS if name != "nll")
            raise wrong("also_metrics", known, metric, where)
    for metric in (item.metric, *item.also_metrics):
        if metric in WITH_CLASSES and not item.classes:
            raise InputError("classes", f"expected the classes of {metric}, got none", where)
    if item.metric != "nll" and item.max_new_tokens < 1:
        raise wrong("max_new_tokens", "at least 1", item.max_new_tokens, where)
    if item.metric == "nll" and not item.answers[0]:
        raise InputError("answers", "expected a text to score, got an empty one", where)


def files_of(paths: Iterable[str | os.PathLike[str]], what: str) -> list[Path]:
    """The files, and those of the folders. ValueError, beginning with `what`, for a wrong path."""
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            inside = sorted(path.glob("[!.]*.jsonl"))
            if not inside:
                raise ValueError(f"{what}: expected *.jsonl files, got none in {str(path)!r}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{what}: no such file or folder: {str(path)!r}")
    return list(dict.fromkeys(files))
