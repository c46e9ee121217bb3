"""What a user did wrong, said in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_SHOWN_FAULTS = 10


class CommandError(Exception):
    """What ends a command with one sentence for the user, and an exit status: 2 for bad input."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


# What libraries call the values that options give.
_OPTIONS = {
    "most_runs": "--runs",
    "most_boundaries": "--boundaries",
    "new_tokens": "--new-tokens",
    "new tokens": "--new-tokens",
    "prompt lengths": "--prompt-tokens",
    "max_length": "--max-length",
    "max_tokens": "--max-tokens",
    "path": "--output",
    **{name: f"--{name}" for name in ("bound", "agreement", "prompts", "rounds", "schedule")},
    **{name: f"--{name}" for name in ("tasks", "longbench", "datasets", "contenders", "lengths")},
    **{name: f"--{name}" for name in ("output", "dtype", "device")},
}


@contextmanager
def as_input_error(*kinds: type[Exception], **options: str) -> Iterator[None]:
    """Errors of these kinds inside the block are the input's fault, not the program's.

    Args:
        options: the options' names for what the block's sentences begin with, where other than
            usual.
    """
    try:
        yield
    except kinds as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        name, colon, said = (lines[0] if lines else type(error).__name__).partition(": ")
        name = {**_OPTIONS, **options}.get(name, name)
        raise CommandError(f"{name}{colon}{said}") from error


def say_skipped(faults: Sequence[str], what: str) -> None:
    """What of the input was passed over, on stderr: the first ones, and how many."""
    for fault in faults[:_SHOWN_FAULTS]:
        print(f"lazyllm-ext: skipped: {fault}", file=sys.stderr)
    if faults:
        print(f"lazyllm-ext: {what} skipped: {len(faults)}", file=sys.stderr)
