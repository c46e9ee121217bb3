"""What is written: Markdown and JSON, and one sentence where that fails."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyllm_ext.files import other_than_file, write_text


@contextmanager
def os_error_as(sentence: str) -> Iterator[None]:
    """An OSError in the block becomes a ValueError: the sentence, and the system's reason."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{sentence}: {error.strerror}") from error


def check_writable(name: str, path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it shall hold.

    Args:
        name: of what is asked for, for messages.

    Raises:
        ValueError: its folder is not there, it is no file, or the system does not allow it.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{name}: no such folder: {path.parent}")
    with os_error_as(f"{name}: cannot write {path}"):
        kind = other_than_file(path)
        if kind is not None:
            raise ValueError(f"{name}: expected a file, got {kind}: {path}")
        if path.exists():
            with path.open("ab"):
                pass
        else:
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(b" ")  # a full disk has room for names


def check_folder(name: str, path: Path) -> None:
    """Refuse a folder, there or not yet, in which no file could be made.

    Args:
        name: of what is asked for, for messages.

    Raises:
        ValueError: a file stands in its way, or the system does not allow it.
    """
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{name}: cannot make the folder {path}: there is a file")
    with os_error_as(f"{name}: cannot write to {path}"), tempfile.TemporaryFile(dir=there) as file:
        file.write(b" ")


def write_json(path: Path, data: Any) -> None:
    """Write a report's data."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_pair(stem: Path, content: dict[str, Any], lines: Iterable[str]) -> None:
    """Write a measurement: its content as `stem`.json, and lines of Markdown as `stem`.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in (("json", json.dumps(content, indent=1)), ("md", "\n".join(lines))):
        write_text(stem.with_name(f"{stem.name}.{suffix}"), text + "\n")
