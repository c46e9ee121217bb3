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
from lazyllm_ext.evaluation.tasks import Tasks, files_of
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


@dataclass(frozen=True)
class Aim:
    """One schedule to be found; `kind` is its file's name where there are several."""

    kind: str
    prompts: Tasks
    output: Path
    report: Path | None


def run(request: Request) -> int:
    """Run the command; returns the exit status.

    Raises:
        CommandError: before anything is computed, for what does not fit.
    """
    if request.output.parent != Path() and not request.output.parent.is_dir():
        raise CommandError(f"--output: no such folder: {request.output.parent}")
    with as_input_error(ValueError):
        if request.report is not None:
            require_matplotlib()
        aims = _aims(request)
    for aim in aims:
        say_skipped(aim.prompts.faults, "prompts")
    device = pick_device(request.device)
    folder = find_folder(request.model, quiet=False)
    tokenizer, model = load(folder, request.dtype, device)
    with as_input_error(ValueError, TypeError):
        subject = Subject(model, tokenizer, chat=request.chat)
    title = f"{folder.name}, {str(model.dtype).removeprefix('torch.')}, {model.device.type}"
    for aim in aims:
        kind = f"-{aim.kind}" if aim.kind else ""
        with as_input_error(ValueError, TypeError), _bar(aim.kind) as progress:
            items = aim.prompts.items[: request.limit]
            tuning = tune(subject, items, request.wish, f"tuned-{folder.name}{kind}", progress)
        say_skipped(tuning.skipped, "prompts")
        if aim.kind:
            print(f"{aim.kind}:")
        _show(tuning)
        with as_input_error(ValueError):
            write_schedule(tuning, aim.output)
            written = [aim.output]
            if aim.report is not None:
                written += write_report(tuning, f"{title}{kind and f', {aim.kind}'}", aim.report)
        print("Written: " + ", ".join(map(str, written)), flush=True)
    return 0


def _aims(request: Request) -> list[Aim]:
    """One for all prompts, or where a folder is to be filled, one for each file of them.

    Raises:
        ValueError: a file that cannot be read, without a good line or with fewer than two.
    """
    if not request.output.is_dir():
        return [Aim("", read_prompts(request.prompts), request.output, request.report)]
    aims = []
    for file in files_of([request.prompts], "prompts"):
        prompts = read_prompts(file)
        if len(prompts.items) < 2:
            raise ValueError(f"prompts: {file}: expected at least 2, got {len(prompts.items)}")
        report = None if request.report is None else request.report / file.stem
        aims.append(Aim(file.stem, prompts, request.output / f"{file.stem}.json", report))
    return aims


@contextmanager
def _bar(kind: str) -> Iterator[Report]:
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
        task = progress.add_task(escape(kind), total=None)

        def report(what: str, done: int, total: int) -> None:
            said = escape(f"{kind} {what}".strip()) if what else None  # None leaves it as it is
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
