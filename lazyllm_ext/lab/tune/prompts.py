"""A user's prompts: JSON lines without labels, in two halves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from lazyllm_ext.json_input import checked, read_object
from lazyllm_ext.lab.evaluation.tasks import (
    Item,
    Tasks,
    Text,
    Truth,
    collect,
    decode_line,
    files_of,
)

T = TypeVar("T")


@checked(extra="ignore")
class _PromptLine:
    prompt: Text
    chat: Truth = False


def read_prompts(path: str | os.PathLike[str]) -> Tasks:
    """Read a file of JSON lines with `prompt` and, if wanted, `chat`; other fields are ignored.

    Raises:
        ValueError: a file that cannot be read, or without one good line.
    """
    files = files_of([path], "prompts")
    return collect("prompts", ((file, partial(_parse, file=file.stem)) for file in files))


def _parse(text: str, where: str, file: str) -> Item:
    """One line -> an item that asks for no answer. InputError for a broken line."""
    line = read_object(_PromptLine, decode_line(text, where), where)
    return Item(
        id=where,  # a line has no name of its own
        task=file,
        category=file,
        prompt=line.prompt,
        answers=(),
        metric="",
        max_new_tokens=0,
        chat=line.chat,
    )


def halves(prompts: Sequence[T]) -> tuple[list[T], list[T]]:
    """Every second one for tuning, the others for the check: files are often sorted by kind.

    Raises:
        ValueError: fewer than two.
    """
    if len(prompts) < 2:
        raise ValueError(
            "prompts: expected at least 2, one to tune on and one to check with, got "
            f"{len(prompts)}"
        )
    return list(prompts[::2]), list(prompts[1::2])
