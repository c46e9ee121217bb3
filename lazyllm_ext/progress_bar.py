"""A progress bar on a terminal's standard error; nothing where that is no terminal.

It is drawn by whoever works, between two pieces of work, and not by a thread of its own, which
would take time from what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.progress import track as _track

_Value = TypeVar("_Value")


@contextmanager
def progress_bar(
    *columns: ProgressColumn, total: float | None, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """A bar of rich's columns while the block runs.

    Args:
        total: at which it is full; None: not known yet.
        shown: False for no bar, on a terminal either.

    Yields:
        What draws it anew, with the arguments of `Progress.update` as to what has changed:
        `advance`, `completed`, `total`, `description`.
    """
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda **changes: None
        return
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)
        progress.refresh()
        yield lambda **changes: progress.update(task, refresh=True, **changes)


def track(values: Iterable[_Value], title: str) -> Iterable[_Value]:
    """The values one after another, with a bar that says how many are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return values
    return _track(values, title, console=console, auto_refresh=False, transient=True)
