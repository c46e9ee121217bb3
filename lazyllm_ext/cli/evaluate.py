"""`lazyllm-ext eval`: tasks, contenders, a table."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lazyllm_ext.lab.evaluation import (
    Contender,
    Evaluation,
    EvaluationReport,
    Item,
    Processes,
    Records,
    Subject,
    Tasks,
    choose,
    cut_prompts,
    make_report,
    model_digest,
    parse_contenders,
    read_longbench,
    read_tasks,
    sharing,
    write_page,
    write_report,
)
from lazyllm_ext.lab.evaluation.report import HEADINGS, cells
from lazyllm_ext.lab.evaluation.summary import heading
from lazyllm_ext.lab.tools.figures import require_matplotlib

from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device
from .show import say_skipped

_FILE_WIDTH = 180


@dataclass(frozen=True)
class Request:
    """The command's options, as the user gave them."""

    model: str
    tasks: Sequence[Path]
    longbench: Path | None
    datasets: Sequence[str]
    max_length: int | None
    contenders: Sequence[str]
    lengths: Sequence[int]
    limit: int | None
    output: Path
    against: str | None
    page: str | None
    chat: bool
    answer_prefix: bool
    dtype: str
    device: str


def evaluate(request: Request) -> int:
    """Run the command, or this process's share of it under torchrun; returns the exit status.

    Raises:
        CommandError: before anything is computed, for what does not fit.
    """
    with sharing() as processes:
        return _evaluate(request, processes)


def _evaluate(request: Request, processes: Processes) -> int:
    leads = processes.rank == 0
    with as_input_error(ValueError):
        require_matplotlib()
        contenders = parse_contenders(request.contenders)
        _check_output(request.output, contenders)
        against = _against(request.against, contenders)
        tasks = _read(request)
        items = choose(tasks.items, request.lengths, request.limit).items
        shown_item = _shown_item(request.page, items)
        # The first process puts together what an interrupted run left, then the others read it.
        if not leads:
            processes.wait()
        records = Records(request.output, processes.rank)
        if leads:
            processes.wait()
    if leads:
        say_skipped(tasks.faults, "broken lines")
    device = processes.device(pick_device(request.device))
    folder = find_folder(request.model, quiet=not leads)
    tokenizer, model = load(folder, request.dtype, device)
    setting = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "chat": request.chat,
        "answer_prefix": request.answer_prefix,
    }
    with as_input_error(ValueError, TypeError):
        subject = Subject(model, tokenizer, chat=request.chat, answer_prefix=request.answer_prefix)
        if request.longbench is not None:
            items = tuple(cut_prompts(subject, items, request.max_length))
        model_key = model_digest(folder)
        evaluation = Evaluation(subject, items, contenders, records, model_key, setting, processes)
    if leads:
        say_skipped(evaluation.skipped, "items")
    if not evaluation.items:
        raise CommandError("expected an item that fits the model's context, got none")
    _run(evaluation, request.output, leads)
    processes.wait()
    if not leads:
        return 0
    with as_input_error(ValueError):
        records.gather()
    skipped = [*tasks.faults, *evaluation.skipped]
    report = make_report(folder.name, setting, contenders, against, evaluation.finished(), skipped)
    _show(report)
    with as_input_error(ValueError, OSError):
        written = write_report(report, request.output)
        if shown_item is not None:
            ran = [item for item in evaluation.items if item.id == shown_item.id]  # perhaps cut
            written += [_page(subject, item, contenders, request.output) for item in ran]
    print("Written: " + ", ".join(str(path) for path in (records.path, *written)))
    return 0


def _check_output(output: Path, contenders: Sequence[Contender]) -> None:
    """The report would be read as one of a folder's schedules."""
    for contender in contenders:
        folder = contender.folder
        if folder is not None and output.exists() and folder.samefile(output):
            raise CommandError(
                f"--output: expected another folder than that of the schedules, got {folder}"
            )


def _read(request: Request) -> Tasks:
    """The items of --tasks or of --longbench; what of the latter is not there is said."""
    if request.longbench is None:
        return read_tasks(request.tasks)
    read = read_longbench(request.longbench, request.datasets)
    if read.missing:
        names = ", ".join(read.missing)
        print(f"lazyllm-ext: not in {request.longbench}: {names}", file=sys.stderr)
    return read.tasks


def _against(name: str | None, contenders: Sequence[Contender]) -> str:
    """The contender that the others are compared with: the one asked for, else dense, else one."""
    names = [contender.name for contender in contenders]
    if name is None:
        return "dense" if "dense" in names else names[0]
    if name not in names:
        raise CommandError(f"--against: expected one of {', '.join(names)}, got {name!r}")
    return name


def _shown_item(name: str | None, items: Sequence[Item]) -> Item | None:
    if name is None:
        return None
    for item in items:
        if item.id == name:
            return item
    raise CommandError(f"--page: expected the id of an item that is run, got {name!r}")


def _run(evaluation: Evaluation, output: Path, shown: bool) -> None:
    """Finish what is not finished, with a bar on a terminal if it shall be shown."""
    jobs = evaluation.pending()
    total = sum(job.contender.seeds for job in jobs)
    finished = len(evaluation.finished())
    if finished and shown:
        print(f"lazyllm-ext: {finished} results found in {output}", file=sys.stderr)
    left = len(jobs)
    try:
        with _bar(total, shown) as advance, as_input_error(ValueError, TypeError):

            def done(job: Any, record: Any) -> None:
                nonlocal left
                left -= 1
                advance(job.contender.seeds, f"{job.item.task} {job.contender.name}")

            evaluation.run(done)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted with {left} results to go; the same command goes on from there",
            status=130,
        ) from None


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda weight, what: None
        return
    # Drawn after each result and not by a thread of its own, which would disturb what is timed.
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        auto_refresh=False,
    ) as progress:
        task = progress.add_task("", total=total)
        progress.refresh()

        def advance(weight: int, what: str) -> None:
            progress.update(task, advance=weight, description=escape(what), refresh=True)

        yield advance


def _show(report: EvaluationReport) -> None:
    """The tables on standard output; in a file as wide as they are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for length in report.lengths:
        title = escape(f"{report.title}: {heading(length)}, against {report.against}")
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(HEADINGS):
            own = number < 2
            whole = own or "[95 %]" in name
            table.add_column(name, justify="left" if own else "right", no_wrap=whole)
        category = None
        for row in report.at(length):
            if category not in (None, row.category):
                table.add_section()
            texts = cells(row, report.against)
            if row.category == category:
                texts[0] = ""
            category = row.category
            table.add_row(*map(escape, texts))
        console.print(table)


def _page(subject: Subject, item: Item, contenders: Sequence[Contender], output: Path) -> Path:
    name = re.sub(r"[^\w.-]+", "_", item.id)
    path = output / f"page-{name}.html"
    path.write_text(write_page(subject, item, contenders), encoding="utf-8")
    return path
