"""`lazyllm-ext eval`: tasks, contenders, a table."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lazyllm_ext.files import write_text

from . import options
from .errors import CommandError, as_input_error, say_skipped
from .loading import find_folder, load, pick_device, settle

if TYPE_CHECKING:
    from lazyllm_ext.lab import evaluation as lab
    from lazyllm_ext.lab.evaluation.runner import PendingRun

_FILE_WIDTH = 180

Output = Annotated[
    Path, typer.Option(help="Folder for records and reports; goes on with what is in it.")
]
TaskFiles = Annotated[
    list[Path] | None, typer.Option(help="JSON lines, or a folder of *.jsonl; may be repeated.")
]
LongBenchFolder = Annotated[
    Path | None, typer.Option(help="Instead of --tasks: the folder of LongBench's *.jsonl.")
]
DataSets = Annotated[str | None, typer.Option(help="Of --longbench only these, commas between.")]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Longest prompt of --longbench in tokens, without chat template; longer ones lose "
        "their middle. By default what the model's context holds.",
    ),
]
Contenders = Annotated[
    str,
    typer.Option(
        help="With commas between: dense, a schedule (a name, a JSON file, or a folder with "
        "one for each task or category), "
        "norevive:SCHEDULE, random:SCHEDULE, static:KEEP, compress:KEEP."
    ),
]
Lengths = Annotated[
    str | None, typer.Option(help="Only items of these target_tokens, commas between.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only so many items of each task and length.")
]
Against = Annotated[
    str | None, typer.Option(help="Contender that the others are compared with; dense if it runs.")
]
Page = Annotated[
    str | None, typer.Option(help="Id of an item to write as a page: which tokens were kept.")
]
AnswerPrefix = Annotated[
    bool,
    typer.Option(
        "--answer-prefix", help="Append the items' answer_prefix where no template is used."
    ),
]


def evaluate(
    model: options.Folder,
    output: Output,
    tasks: TaskFiles = None,
    longbench: LongBenchFolder = None,
    datasets: DataSets = None,
    max_length: MaxLength = None,
    contenders: Contenders = "dense,balanced",
    lengths: Lengths = None,
    limit: Limit = None,
    against: Against = None,
    page: Page = None,
    chat: options.Chat = True,
    answer_prefix: AnswerPrefix = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> int:
    """Compare schedules and baselines on tasks: scores, speed, and how near they are to dense."""
    from lazyllm_ext.lab import evaluation as lab
    from lazyllm_ext.lab.bench.request import numbers
    from lazyllm_ext.lab.tools.figures import require_matplotlib

    _check_source(tasks, longbench, datasets, max_length)
    with ExitStack() as stack:
        # Under torchrun there are several, and this one has a share.
        processes = stack.enter_context(lab.sharing())
        leads = processes.rank == 0
        with as_input_error(ValueError):
            nominal = () if lengths is None else numbers("--lengths", lengths, "whole numbers")
            require_matplotlib()
            compared = lab.parse_contenders(contenders.split(","))
            _check_output(output, compared)
            base = _against(against, compared)
            read = _read(tasks or [], longbench, datasets)
            items = lab.choose(read.items, nominal, limit).items
            _check_page(page, items)
            if leads:
                stack.enter_context(lab.only_run(output))
            records = _open_records(output, processes)
        if leads:
            say_skipped(read.faults, "broken lines")
        device = processes.device(pick_device(device))
        folder = find_folder(model, quiet=not leads)
        tokenizer, loaded = load(folder, dtype, device)
        settle(loaded, greedy=True, quiet=not leads)
        setting = _setting(loaded, chat, answer_prefix)
        with as_input_error(ValueError, TypeError):
            subject = lab.Subject(loaded, tokenizer, chat=chat, answer_prefix=answer_prefix)
            if longbench is not None:
                items = tuple(lab.cut_prompts(subject, items, max_length))
            key = lab.model_digest(folder)
            run = lab.Evaluation(subject, items, compared, records, key, setting, processes)
        if leads:
            say_skipped(run.skipped, "items")
        if not run.items:
            first = f"; the first fault: {run.skipped[0]}" if run.skipped else ""
            raise CommandError(f"expected an item that fits the model's context, got none{first}")
        _finish(run, output)
        processes.wait()
        if leads:
            _report(run, folder.name, base, read.faults, output, page)
    return 0


def _check_source(
    tasks: list[Path] | None, longbench: Path | None, datasets: str | None, max_length: int | None
) -> None:
    """What no option shows alone."""
    if bool(tasks) == bool(longbench):
        raise CommandError(
            f"--tasks, --longbench: expected one of them, got {'both' if tasks else 'neither'}"
        )
    for option, value in (("--datasets", datasets), ("--max-length", max_length)):
        if value is not None and not longbench:
            raise CommandError(f"{option}: expected --longbench with it, got --tasks")


def _check_output(output: Path, contenders: Sequence[lab.Contender]) -> None:
    """The report would be read as one of a folder's schedules."""
    for contender in contenders:
        folder = contender.folder
        if folder is not None and output.exists() and folder.samefile(output):
            raise CommandError(
                f"--output: expected another folder than that of the schedules, got {folder}"
            )


def _read(tasks: Sequence[Path], longbench: Path | None, datasets: str | None) -> lab.Tasks:
    """The items of --tasks or of --longbench; what of the latter is not there is said."""
    from lazyllm_ext.lab.evaluation import read_longbench, read_tasks

    if longbench is None:
        return read_tasks(tasks)
    names = [] if datasets is None else [name.strip() for name in datasets.split(",")]
    read = read_longbench(longbench, names)
    if read.missing:
        print(f"lazyllm-ext: not in {longbench}: {', '.join(read.missing)}", file=sys.stderr)
    return read.tasks


def _against(name: str | None, contenders: Sequence[lab.Contender]) -> str:
    """The contender that the others are compared with: the one asked for, else dense, else one."""
    names = [contender.name for contender in contenders]
    if name is None:
        return "dense" if "dense" in names else names[0]
    if name not in names:
        raise CommandError(f"--against: expected one of {', '.join(names)}, got {name!r}")
    return name


def _check_page(name: str | None, items: Sequence[lab.Item]) -> None:
    if name is not None and all(item.id != name for item in items):
        raise CommandError(f"--page: expected the id of an item that is run, got {name!r}")


def _open_records(output: Path, processes: lab.Processes) -> lab.Records:
    """The first process puts together what an interrupted run left, then the others read it."""
    from lazyllm_ext.lab.evaluation import Records

    if processes.rank == 0:
        records = Records(output, 0)
        processes.wait()
    else:
        processes.wait()
        records = Records(output, processes.rank)
    return records


def _setting(model: Any, chat: bool, answer_prefix: bool) -> dict[str, Any]:
    """What scores depend on beside the model, as it is kept with them."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "chat": chat,
        "answer_prefix": answer_prefix,
    }


def _finish(run: lab.Evaluation, output: Path) -> None:
    """Finish what is not finished, with a bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from lazyllm_ext.progress_bar import progress_bar

    jobs = run.pending()
    left, found, leads = len(jobs), len(run.finished()), run.processes.rank == 0
    if found and leads:
        print(f"lazyllm-ext: {found} results found in {output}", file=sys.stderr)
    seeds = sum(job.contender.seeds for job in jobs)
    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("remaining"), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    bar = progress_bar(*columns, total=seeds, shown=leads)
    try:
        with bar as draw, as_input_error(ValueError, TypeError):

            def done(job: PendingRun, record: lab.Record) -> None:
                nonlocal left
                left -= 1
                what = escape(f"{job.item.task} {job.contender.name}")
                draw(advance=job.contender.seeds, description=what)

            run.run(done)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted with {left} results to go; the same command goes on from there",
            status=130,
        ) from None


def _report(
    run: lab.Evaluation,
    model: str,
    against: str,
    faults: Sequence[str],
    output: Path,
    page: str | None,
) -> None:
    """Gather all processes' records; show what they say, and write it."""
    from lazyllm_ext.lab.evaluation import EvaluationReport, write_page, write_report

    with as_input_error(ValueError):
        run.records.gather()
    skipped = [*faults, *run.skipped]
    report = EvaluationReport(model, run.setting, run.contenders, against, run.finished(), skipped)
    _show(report)
    with as_input_error(ValueError, OSError):
        written = write_report(report, output)
        pages = [item for item in run.items if item.id == page]
        for item in pages:
            name = re.sub(r"[^\w.-]+", "_", item.id)
            written.append(output / f"page-{name}.html")
            text = write_page(run.subject, item, run.contenders)
            write_text(written[-1], text)
    print("Written: " + ", ".join(str(path) for path in (run.records.path, *written)))


def _show(report: lab.EvaluationReport) -> None:
    """The tables on standard output; in a file as wide as they are."""
    from lazyllm_ext.lab.evaluation.report import cells
    from lazyllm_ext.lab.evaluation.summary import heading

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for length in report.lengths:
        title = escape(f"{report.title}: {heading(length)}, against {report.against}")
        table = Table(title=title, title_justify="left")
        rows = report.at(length)
        for number, name in enumerate(cells(rows[0], report.against)):
            own = number < 2
            whole = own or "[95 %]" in name
            table.add_column(name, justify="left" if own else "right", no_wrap=whole)
        category = None
        for row in rows:
            if category not in (None, row.category):
                table.add_section()
            texts = cells(row, report.against)
            if row.category == category:
                texts["category"] = ""
            category = row.category
            table.add_row(*map(escape, texts.values()))
        console.print(table)
