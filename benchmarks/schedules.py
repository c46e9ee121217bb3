"""How near schedules stay to the dense model, side by side: how the shipped ones are chosen.

    python benchmarks/schedules.py --model FOLDER --tasks tasks/ --schedules candidates.jsonl

`candidates.jsonl` has a schedule a line, as docs/schedules.md writes them. For each item the dense
model runs once; every schedule begins with what entered its first boundary's layer, and is made to
say the dense model's greedy continuation, as in `lazyllm-ext tune`. Means over the tasks of a
category, then over the categories.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lazyllm_ext.cli.app import run
from lazyllm_ext.cli.bench import command_line
from lazyllm_ext.cli.errors import CommandError, as_input_error
from lazyllm_ext.cli.loading import find_folder, load, pick_device
from lazyllm_ext.lab import evaluation as ev
from lazyllm_ext.lab.bench.report import write
from lazyllm_ext.lab.bench.request import numbers
from lazyllm_ext.lab.evaluation.summary import balanced_mean
from lazyllm_ext.lab.tools import machine
from lazyllm_ext.lab.tools.dense import full_attention
from lazyllm_ext.lab.tools.tables import show, table_of
from lazyllm_ext.lab.tune import trial
from lazyllm_ext.lab.tune.reference import DenseModel
from lazyllm_ext.progress_bar import track
from lazyllm_ext.schedule import Boundary, PruningSchedule

RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = ("ratio", "kl", "agreement", "first")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    model: Annotated[str, typer.Option(help="Folder of a transformers model, or 'demo'.")],
    tasks: Annotated[list[Path], typer.Option(help="JSON lines, or a folder; may be repeated.")],
    schedules: Annotated[Path, typer.Option(help="A file with a schedule a line.")],
    lengths: Annotated[str, typer.Option(help="target_tokens, commas between.")] = "2000",
    skip: Annotated[int, typer.Option(help="First items of each task and length left out.")] = 0,
    limit: Annotated[int, typer.Option(help="Items of each task and length after these.")] = 2,
    new_tokens: Annotated[int, typer.Option(help="Most tokens of each continuation.")] = 16,
    dtype: Annotated[str, typer.Option(help="As in lazyllm-ext eval.")] = "auto",
    name: Annotated[str, typer.Option(help="Name of the result files.")] = "schedules",
) -> None:
    """Run every schedule on every item; write benchmarks/results/NAME.json and NAME.md."""
    if skip < 0 or limit < 1 or new_tokens < 1:
        raise CommandError(
            "schedules: expected a skip from 0, a limit and new tokens from 1 on, got "
            f"{skip}, {limit} and {new_tokens}"
        )
    with as_input_error(ValueError):
        wanted = numbers("lengths", lengths)
        chosen = ev.choose(ev.read_tasks(tasks).items, wanted, skip + limit).items
        first = {item.id for item in ev.choose(chosen, wanted, skip).items}
        items = [item for item in chosen if item.id not in first]
        candidates = list(_read(schedules))
    if not candidates:
        raise CommandError(f"schedules: expected a schedule a line, got none in {schedules}")
    for length in wanted:
        if not any(item.target_tokens == length for item in items):
            raise CommandError(
                f"schedules: expected items of {length} tokens after the first {skip}, got none"
            )
    folder = find_folder(model, quiet=False)
    tokenizer, loaded = load(folder, dtype, pick_device("cpu"))
    subject, dense = ev.Subject(loaded, tokenizer), DenseModel(loaded)
    with as_input_error(ValueError):
        placed = [at_layers(schedule, dense, folder.name) for schedule in candidates]
    outcomes = list(_outcomes(subject, dense, placed, items, new_tokens))
    result = {
        "machine": machine.describe(),
        "model": folder.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "schedules": [schedule.to_dict() for schedule in placed],
        "outcomes": outcomes,
    }
    tables = [
        _table(length, placed, [outcome for outcome in outcomes if outcome["length"] == length])
        for length in wanted
    ]
    write(RESULTS / name, command_line(), result, tables, [])
    show(tables)


def _read(path: Path) -> Iterator[PruningSchedule]:
    """The schedules of a file's lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"schedules: cannot read {str(path)!r}: {error}") from error
    for line in lines:
        if line.strip():
            yield PruningSchedule.from_json(line)


def at_layers(schedule: PruningSchedule, dense: DenseModel, model: str) -> PruningSchedule:
    """The same with boundaries by layer, as `trial.run` takes them."""
    mine = schedule.for_model(model)
    if not mine.boundaries:
        raise ValueError("schedules: expected boundaries, got a schedule without")
    layers = mine.resolve(full_attention(dense.decoder)).layers
    if len(layers) != len(mine.boundaries):
        raise ValueError(f"schedules: expected boundaries in different layers, got {layers}")
    boundaries: list[Boundary] = [
        replace(boundary, layer=layer, depth=None)
        for boundary, layer in zip(mine.boundaries, layers, strict=True)
    ]
    return replace(mine, boundaries=tuple(boundaries), models={})


def _outcomes(
    subject: ev.Subject,
    dense: DenseModel,
    schedules: Sequence[PruningSchedule],
    items: Sequence[ev.Item],
    new_tokens: int,
) -> Iterator[dict[str, Any]]:
    """What comes of every schedule on every item."""
    begins = sorted({schedule.boundaries[0].layer or 0 for schedule in schedules})
    for item in track(items, "items"):
        ids = subject.encode(item).ids
        most = min(new_tokens, max(1, item.max_new_tokens))
        if (fault := subject.too_long(item, ids.numel(), most)) is not None:
            raise CommandError(f"schedules: {fault}")
        reference = dense.reference(ids, most, subject.stop, begins)
        for number, schedule in enumerate(schedules):
            outcome = asdict(trial.run(dense.decoder, schedule, reference))
            outcome["ratio"] = outcome["dense_operations"] / outcome["operations"]
            outcome |= {"item": item.id, "task": item.task, "category": item.category}
            yield {"schedule": number, "length": item.target_tokens, **outcome}


def _mean(outcomes: Sequence[dict[str, Any]], figure: str) -> float:
    return balanced_mean((o["category"], o["task"], o[figure]) for o in outcomes)


def _table(
    length: int, schedules: Sequence[PruningSchedule], outcomes: Sequence[dict[str, Any]]
) -> Table:
    """The schedules on the items of one length, in the order of what they spare."""
    lines = []
    for number, schedule in enumerate(schedules):
        mine = [outcome for outcome in outcomes if outcome["schedule"] == number]
        ratio, kl, agreement, first = (_mean(mine, figure) for figure in FIGURES)
        kinds = {outcome["category"]: 0.0 for outcome in mine}
        for kind in kinds:
            kinds[kind] = _mean([outcome for outcome in mine if outcome["category"] == kind], "kl")
        places = ", ".join(f"{b.layer}: {b.keep or b.tokens:g}" for b in schedule.boundaries)
        scores = f"{schedule.window}, {schedule.pool}, {schedule.over_heads}"
        figures = [f"{ratio:.2f}", f"{kl:.3f}", f"{100 * agreement:.0f}", f"{100 * first:.0f}"]
        by_kind = ", ".join(f"{kind} {kl:.3f}" for kind, kl in sorted(kinds.items()))
        lines.append((ratio, [places, scores, *figures, by_kind]))
    items = len({outcome["item"] for outcome in outcomes})
    header = ["layer: keep", "window, pool, heads", "operations ÷", "KL, nats"]
    header += ["same tokens %", "same first %", "KL by category"]
    return table_of(f"{length} tokens, {items} items", header, [line for _, line in sorted(lines)])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], app, "benchmarks/schedules.py"))
