"""`lazyllm-ext tune`: prompts in, a schedule out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lazyllm_ext.evaluation import Subject
from lazyllm_ext.evaluation.plots import require_matplotlib
from lazyllm_ext.tune import (
    Outcome,
    Tuning,
    Wish,
    read_prompts,
    tune,
    write_report,
    write_schedule,
)
from lazyllm_ext.tune.report import sentences
from lazyllm_ext.tune.tuner import Progress as Report

from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device
from .show import say_skipped


@dataclass(frozen=True)
class Request:
    """The command's options, as the user gave them."""

    model: str
    prompts: Path
    wish: Wish
    output: Path
    report: Path | None
    limit: int | None
    chat: bool
    dtype: str
    device: str


def run(request: Request) -> int:
    """Run the command; returns the exit status.

    Raises:
        CommandError: before anything is computed, for what does not fit.
    """
    if request.output.parent != Path() and not request.output.parent.is_dir():
        raise CommandError(f"--output: no such folder: {request.output.parent}")
    if request.output.is_dir():
        raise CommandError(f"--output: expected a file, got a folder: {request.output}")
    with as_input_error(ValueError):
        if request.report is not None:
            require_matplotlib()
        prompts = read_prompts(request.prompts)
    say_skipped(prompts.faults, "prompts")
    device = pick_device(request.device)
    folder = find_folder(request.model, quiet=False)
    tokenizer, model = load(folder, request.dtype, device)
    with as_input_error(ValueError, TypeError), _bar() as progress:
        subject = Subject(model, tokenizer, chat=request.chat)
        items = prompts.items[: request.limit]
        tuning = tune(subject, items, request.wish, f"tuned-{folder.name}", progress)
    say_skipped(tuning.skipped, "prompts")
    _show(tuning)
    title = f"{folder.name}, {str(model.dtype).removeprefix('torch.')}, {model.device.type}"
    with as_input_error(ValueError):
        write_schedule(tuning, request.output)
        written = [request.output]
        if request.report is not None:
            written += write_report(tuning, title, request.report)
    print("Written: " + ", ".join(map(str, written)))
    return 0


@contextmanager
def _bar() -> Iterator[Report]:
    """A bar on a terminal; the time is an upper bound, as a search may end early."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    with Progress(
        BarColumn(),
        TextColumn("at most"),
        TimeRemainingColumn(),
        TextColumn("remaining {task.description}"),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            said = escape(what) if what else None  # None leaves it as it is
            progress.update(task, completed=done, total=total, description=said, refresh=True)

        yield report


def _show(tuning: Tuning) -> None:
    """Both halves, and what is to be said about them."""
    for sentence in sentences(tuning):
        print(sentence)
    if tuning.tuned is not None and tuning.checked is not None:
        print(_line("tuned on", len(tuning.tuned_tokens), tuning.tuned))
        print(_line("checked on", len(tuning.checked_tokens), tuning.checked))


def _line(half: str, prompts: int, outcome: Outcome) -> str:
    return (
        f"{half} {prompts} prompts: {outcome.ratio:.2f}× fewer operations, KL {outcome.kl:.4f} "
        f"nats, agreement {100 * outcome.agreement:.1f} %, same first token "
        f"{100 * outcome.first:.0f} %"
    )
