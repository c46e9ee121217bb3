"""`lazyllm-ext tune`: prompts in, a schedule out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lazyllm_ext.lab.evaluation import Item, Subject
from lazyllm_ext.lab.evaluation.tasks import files_of
from lazyllm_ext.lab.tools.figures import require_matplotlib
from lazyllm_ext.lab.tune import (
    Outcome,
    Tuning,
    Wish,
    read_prompts,
    tune,
    write_report,
    write_schedule,
)
from lazyllm_ext.lab.tune.prompts import halves
from lazyllm_ext.lab.tune.report import sentences
from lazyllm_ext.lab.tune.tuner import Progress as Report
from lazyllm_ext.lab.tune.tuner import fitting_prompts

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
    """A schedule to be found.

    Attributes:
        kind: of prompts, the name of their file; empty where one schedule is for all.
        items: the prompts.
        faults: a sentence for every line that is no prompt.
        output, report: where it is written.
    """

    kind: str
    items: tuple[Item, ...]
    faults: tuple[str, ...]
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
        say_skipped(aim.faults, "prompts")
    device = pick_device(request.device)
    folder = find_folder(request.model, quiet=False)
    tokenizer, model = load(folder, request.dtype, device)
    with as_input_error(ValueError, TypeError):
        subject = Subject(model, tokenizer, chat=request.chat)
        for aim in aims:
            with _naming(aim.kind):
                fitting, skipped = fitting_prompts(subject, aim.items, request.wish.new_tokens)
                say_skipped(skipped, "prompts")
                halves(fitting)
        if aims[0].kind:
            _make(request.output)
    title = f"{folder.name}, {str(model.dtype).removeprefix('torch.')}, {model.device.type}"
    for aim in aims:
        with as_input_error(ValueError, TypeError), _bar(aim.kind) as progress:
            name = "-".join(filter(None, ("tuned", folder.name, aim.kind)))
            tuning = tune(subject, aim.items, request.wish, name, progress)
        if aim.kind:
            print(f"{aim.kind}:")
        _show(tuning)
        with as_input_error(ValueError):
            write_schedule(tuning, aim.output)
            written = [aim.output]
            if aim.report is not None:
                about = ", ".join(filter(None, (title, aim.kind)))
                written += write_report(tuning, about, aim.report)
        print("Written: " + ", ".join(map(str, written)), flush=True)
    return 0


def _aims(request: Request) -> list[Aim]:
    """One for all prompts if the output ends in .json, else one for each file of them.

    Raises:
        ValueError: a file that cannot be read, without a good line, or that would be written over;
            a folder that cannot be made.
    """
    output, report = request.output, request.report
    if output.suffix == ".json" and not output.is_dir():
        prompts = read_prompts(request.prompts)
        _not_over(request.prompts, output)
        return [Aim("", prompts.items[: request.limit], prompts.faults, output, report)]
    aims = []
    for file in files_of([request.prompts], "prompts"):
        kind = file.stem
        with _naming(kind):
            prompts = read_prompts(file)
        target = output / f"{kind}.json"
        _not_over(file, target)
        place = None if report is None else report / kind
        aims.append(Aim(kind, prompts.items[: request.limit], prompts.faults, target, place))
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: cannot make the folder {output}: there is a file")
    return aims


def _not_over(prompts: Path, target: Path) -> None:
    if target.exists() and target.samefile(prompts):
        raise ValueError(f"--output: expected another path than that of the prompts, got {target}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output: cannot make the folder {folder}: {error.strerror}") from error


@contextmanager
def _naming(kind: str) -> Iterator[None]:
    """A ValueError says first of which kind it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(": ".join(filter(None, (kind, str(error))))) from error


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
