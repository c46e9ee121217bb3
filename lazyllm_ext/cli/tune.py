"""`lazyllm-ext tune`: prompts in, a schedule out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from . import options
from .errors import CommandError, as_input_error, say_skipped
from .loading import find_folder, load, pick_device, settle

if TYPE_CHECKING:
    from lazyllm_ext.lab.evaluation import Item, Subject
    from lazyllm_ext.lab.tune import Journal, Outcome, Tuning, Wish


Prompts = Annotated[
    Path,
    typer.Option(
        help="JSON lines with `prompt` and maybe `chat`, or a folder of such files; 10 to 50 "
        "prompts are enough."
    ),
]
Bound = Annotated[
    float, typer.Option(min=0, help="Largest mean KL to the dense model's first tokens, in nats.")
]
Agreement = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Smallest part of tokens that are the dense model's, 0-1."),
]
Output = Annotated[
    Path,
    typer.Option(
        help="Where the schedule is written; a name that does not end in .json is a folder, "
        "which gets one for each file of prompts."
    ),
]
ReportFolder = Annotated[
    Path | None, typer.Option(help="Folder for report.md, report.json and plots.")
]
Limit = Annotated[int | None, typer.Option(min=2, help="Only the first so many prompts.")]
NewTokens = Annotated[
    int, typer.Option(min=1, help="Tokens of each dense continuation that are compared.")
]
Boundaries = Annotated[int, typer.Option(min=1, max=3, help="Most boundaries, 1 to 3.")]
Runs = Annotated[int, typer.Option(min=1, help="Most schedules that are run.")]


@dataclass(frozen=True)
class Aim:
    """A schedule to be found."""

    kind: str  # of prompts, the name of their file; empty where one schedule is for all
    items: tuple[Item, ...]  # the prompts
    faults: tuple[str, ...]  # a sentence for every line that is no prompt
    output: Path
    report: Path | None


def tune(
    model: options.Folder,
    prompts: Prompts,
    bound: Bound = 0.05,
    agreement: Agreement = None,
    output: Output = Path("schedule.json"),
    report: ReportFolder = None,
    limit: Limit = None,
    new_tokens: NewTokens = 16,
    boundaries: Boundaries = 2,
    runs: Runs = 40,
    chat: options.Chat = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> int:
    """Find the cheapest schedule that stays near the dense model on your own prompts."""
    from lazyllm_ext.lab.evaluation import Subject
    from lazyllm_ext.lab.evaluation.results import model_digest
    from lazyllm_ext.lab.tools.figures import require_matplotlib
    from lazyllm_ext.lab.tools.files import os_error_as
    from lazyllm_ext.lab.tune import Journal, Wish

    if not output.parent.is_dir():
        raise CommandError(f"--output: no such folder: {output.parent}")
    with as_input_error(ValueError):
        wish = Wish(bound, agreement, new_tokens, boundaries, runs)
        if report is not None:
            require_matplotlib()
        aims = _aims(prompts, output, report, limit)
        _check_places(aims)
    for aim in aims:
        say_skipped(aim.faults, "prompts")
    device = pick_device(device)
    folder = find_folder(model, quiet=False)
    tokenizer, loaded = load(folder, dtype, device)
    settle(loaded, greedy=True)
    with as_input_error(ValueError, TypeError):
        subject = Subject(loaded, tokenizer, chat=chat)
        _check(aims, subject, new_tokens)
        if aims[0].kind:
            with os_error_as(f"--output: cannot make the folder {output}"):
                output.mkdir(exist_ok=True)
    about = f"{folder.name}, {str(loaded.dtype).removeprefix('torch.')}, {loaded.device.type}"
    depends = {"model": model_digest(folder), "setting": about, "new_tokens": new_tokens}
    journals = []
    for aim in aims:
        with as_input_error(ValueError):
            place = aim.output.with_name(f"{aim.output.name}.partial")
            journals.append(Journal(place, depends))
        _reach(aim, subject, wish, folder.name, about, journals[-1])
    for journal in journals:  # only now: an interrupt between two files loses nothing either
        journal.remove()
    return 0


def _check_places(aims: Sequence[Aim]) -> None:
    """Refuse what could not be written, before anything takes long."""
    from lazyllm_ext.lab.tools.files import check_folder, check_writable

    for aim in aims:
        if aim.output.parent.exists():
            check_writable("--output", aim.output)
        else:
            check_folder("--output", aim.output.parent)
        if aim.report is not None:
            check_folder("--report", aim.report)


def _check(aims: Sequence[Aim], subject: Subject, new_tokens: int) -> None:
    """Refuse too few prompts of a kind before any of the others is tuned."""
    from lazyllm_ext.lab.tune.prompts import halves
    from lazyllm_ext.lab.tune.tuner import fitting_prompts

    for aim in aims:
        with _naming(aim.kind):
            fitting, skipped = fitting_prompts(subject, aim.items, new_tokens)
            say_skipped(skipped, "prompts")
            halves(fitting)


def _reach(
    aim: Aim, subject: Subject, wish: Wish, model: str, about: str, journal: Journal
) -> None:
    """Find the schedule; show and write it."""
    from lazyllm_ext.lab import tune as lab

    if journal.found:
        print(f"lazyllm-ext: {journal.found} results found in {journal.path}", file=sys.stderr)
    try:
        with as_input_error(ValueError, TypeError), _search_bar(aim.kind) as progress:
            name = "-".join(filter(None, ("tuned", model, aim.kind)))
            tuning = lab.tune(subject, aim.items, wish, name, progress, journal)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted with {journal.found} results in {journal.path}; the same command goes on "
            "from there",
            status=130,
        ) from None
    if aim.kind:
        print(f"{aim.kind}:")
    _show(tuning)
    with as_input_error(ValueError):
        lab.write_schedule(tuning, aim.output)
        written = [aim.output]
        if aim.report is not None:
            title = ", ".join(filter(None, (about, aim.kind)))
            written += lab.write_report(tuning, title, aim.report)
    print("Written: " + ", ".join(map(str, written)), flush=True)


def _aims(prompts: Path, output: Path, report: Path | None, limit: int | None) -> list[Aim]:
    """One for all prompts if the output ends in .json, else one for each file of them.

    Raises:
        ValueError: a file that cannot be read, without a good line, or that would be written over;
            a folder that cannot be made.
    """
    from lazyllm_ext.lab.evaluation.tasks import files_of
    from lazyllm_ext.lab.tune import read_prompts

    if output.suffix == ".json" and not output.is_dir():
        read = read_prompts(prompts)
        _not_over(prompts, output)
        return [Aim("", read.items[:limit], read.faults, output, report)]
    aims = []
    for file in files_of([prompts], "prompts"):
        kind = file.stem
        with _naming(kind):
            read = read_prompts(file)
        target = output / f"{kind}.json"
        _not_over(file, target)
        place = None if report is None else report / kind
        aims.append(Aim(kind, read.items[:limit], read.faults, target, place))
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: cannot make the folder {output}: there is a file")
    return aims


def _not_over(prompts: Path, target: Path) -> None:
    if target.exists() and target.samefile(prompts):
        raise ValueError(f"--output: expected another path than that of the prompts, got {target}")


@contextmanager
def _naming(kind: str) -> Iterator[None]:
    """A ValueError says first of which kind it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(": ".join(filter(None, (kind, str(error))))) from error


@contextmanager
def _search_bar(kind: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; the time is an upper bound, as a search may end early."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    from lazyllm_ext.progress_bar import progress_bar

    columns = (
        BarColumn(), TextColumn("at most"), TimeRemainingColumn(),
        TextColumn("remaining {task.description}"),
    )  # fmt: skip
    with progress_bar(*columns, total=None) as draw:
        draw(description=escape(kind))

        def report(what: str, done: int, total: int) -> None:
            said = escape(f"{kind} {what}".strip()) if what else None  # None leaves it as it is
            draw(completed=done, total=total, description=said)

        yield report


def _show(tuning: Tuning) -> None:
    """Both halves, and what is to be said about them."""
    from lazyllm_ext.lab.tune.report import sentences

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
