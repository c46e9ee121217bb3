"""LongBench (Bai et al. 2023, arXiv 2308.14508) as published: its English and code data sets.

LongBench's own files become items; each has its metric, its longest answer and its prompt. A prompt
that is longer than the limit loses its middle, before the chat template is put around it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lazyllm_ext.json_input import InputError, checked, read_object, wrong

from .longbench_prompts import PROMPTS
from .measure import REFERENCE_TOKENS
from .subject import Subject
from .tasks import Item, OptionalText, OptionalTexts, Tasks, Text, Texts, collect, decode_line


@dataclass(frozen=True)
class DataSet:
    """One of LongBench's."""

    category: str  # what data sets are averaged in
    metric: str  # one of METRICS
    max_new_tokens: int
    # Whether the prompt is a user's turn. Prompts that a model goes on with, after examples of
    # the same form or inside code, are not.
    chat: bool = True


DATA_SETS: Mapping[str, DataSet] = {
    "narrativeqa": DataSet("single-document QA", "f1", 128),
    "qasper": DataSet("single-document QA", "f1", 128),
    "multifieldqa_en": DataSet("single-document QA", "f1", 64),
    "hotpotqa": DataSet("multi-document QA", "f1", 32),
    "2wikimqa": DataSet("multi-document QA", "f1", 32),
    "musique": DataSet("multi-document QA", "f1", 32),
    "gov_report": DataSet("summarization", "rougeL", 512),
    "qmsum": DataSet("summarization", "rougeL", 512),
    "multi_news": DataSet("summarization", "rougeL", 512),
    "trec": DataSet("few-shot", "classes_first_line", 64, chat=False),
    "triviaqa": DataSet("few-shot", "f1_first_line", 32, chat=False),
    "samsum": DataSet("few-shot", "rougeL_first_line", 128, chat=False),
    "passage_count": DataSet("synthetic", "numbers", 32),
    "passage_retrieval_en": DataSet("synthetic", "numbers", 32),
    "lcc": DataSet("code", "code_line", 64, chat=False),
    "repobench-p": DataSet("code", "code_line", 64, chat=False),
}


@dataclass(frozen=True)
class LongBench:
    """What was read."""

    tasks: Tasks  # the items, their prompts uncut
    # Data sets that the folder has no file of; empty where they were asked for by name.
    missing: tuple[str, ...]


def read_longbench(folder: str | os.PathLike[str], names: Sequence[str] = ()) -> LongBench:
    """Read LongBench's files, NAME.jsonl, from a folder.

    Args:
        names: data sets, in the order in which they run; none for all that are there.

    Raises:
        ValueError: an unknown name, the same one twice, a file that is not there, or no good item.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"longbench: no such folder: {str(folder)!r}")
    _check_names(names)
    there = [name for name in names or DATA_SETS if (place / f"{name}.jsonl").is_file()]
    missing = tuple(name for name in names or DATA_SETS if name not in there)
    if names and missing:
        raise ValueError(
            f"longbench: expected {missing[0]}.jsonl in {str(folder)!r}, got no such file"
        )
    if not there:
        raise ValueError(
            f"longbench: expected LongBench's files, as hotpotqa.jsonl, got none in {str(folder)!r}"
        )
    tasks = collect("longbench", ((place / f"{n}.jsonl", partial(parse, name=n)) for n in there))
    return LongBench(tasks, missing)


def _check_names(names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name not in DATA_SETS:
            raise ValueError(f"datasets: expected some of {', '.join(DATA_SETS)}, got {name!r}")
        if name in seen:
            raise ValueError(f"datasets: expected each name once, got {name!r} twice")
        seen.add(name)


@checked(extra="ignore")
class _Line:
    """A line of a data set's file."""

    _id: Text
    context: Text
    answers: Texts
    input: OptionalText = ""
    all_classes: OptionalTexts = ()
    dataset: Any = None


def parse(text: str, where: str, name: str) -> Item:
    """One line of a data set's file -> an item, its prompt uncut.

    Args:
        where: file and line, for messages.

    Raises:
        InputError: not a JSON object, or a field that is missing or wrong: field, expected, got.
    """
    line, own = read_object(_Line, decode_line(text, where), where), DATA_SETS[name]
    if line.dataset not in (None, name):
        raise wrong("dataset", name, line.dataset, where)
    if not line.answers:
        raise InputError("answers", "expected at least one answer, got none", where)
    if own.metric == "classes_first_line" and not line.all_classes:
        raise InputError("all_classes", "expected the classes, got none", where)
    return Item(
        id=f"{name}:{line._id}",
        task=name,
        category=own.category,
        prompt=PROMPTS[name].format(context=line.context, input=line.input),
        answers=line.answers,
        metric=own.metric,
        max_new_tokens=own.max_new_tokens,
        question=line.input.strip() or None,
        chat=own.chat,
        classes=line.all_classes if own.metric == "classes_first_line" else (),
    )


def cut_prompts(
    subject: Subject, items: Sequence[Item], max_length: int | None = None
) -> list[Item]:
    """The items with prompts of at most `max_length` tokens, chat template not counted.

    Prompts that do not leave the answer its room in the model's context are cut in any case. Where
    the answer alone fills it, the prompt stays whole, and `Evaluation` leaves the item out.

    Args:
        max_length: None for as much as the context holds.

    Raises:
        ValueError: fewer than 2 tokens.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length: expected at least 2 tokens, got {max_length}")
    cut = []
    for item in items:
        limit = _limit(subject, item, max_length)
        if limit is not None and limit >= 2:
            item = replace(item, prompt=cut_middle(subject, item.prompt, limit))
        cut.append(item)
    return cut


def _limit(subject: Subject, item: Item, max_length: int | None) -> int | None:
    """Most tokens of the item's own text; None for no limit."""
    if subject.context is None:
        return max_length
    # What a template or the tokenizer puts around a text, measured on a short one.
    around = subject.encode(item, "a").ids.numel() - subject.tokens("a").ids.numel()
    answer = max(item.max_new_tokens, REFERENCE_TOKENS)
    room = subject.context - answer - around
    return room if max_length is None else min(room, max_length)


def cut_middle(subject: Subject, text: str, limit: int) -> str:
    """The text with its middle left out: the first and the last half of `limit` tokens stay.

    Where the tokens at the seam come out as more, less of both halves stays.

    Args:
        limit: at least 2.
    """
    spans = subject.tokens(text).spans
    if len(spans) <= limit:
        return text
    for half in range(limit // 2, 0, -1):
        short = text[: spans[half - 1][1]] + text[spans[-half][0] :]
        if subject.tokens(short).ids.numel() <= limit:
            break
    return short
