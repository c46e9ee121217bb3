"""Short prompts: what dropping tokens gains and costs, by length: how `min_tokens` is chosen.

    python benchmarks/short_prompts.py --model FOLDER --tasks tasks/ --name NAME

Prompts are the tasks' own of one length, cut in the middle to each shorter one. Times are those of
prefills, one after the other in every round: the dense model, the schedule that finds a prompt too
short (it scores, and drops nothing), and the schedule that drops. How near the last stays to the
dense model is measured as in benchmarks/schedules.py.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from schedules import at_layers
from torch import Tensor

from lazyllm_ext.cli.app import run
from lazyllm_ext.cli.bench import command_line
from lazyllm_ext.cli.errors import as_input_error
from lazyllm_ext.cli.loading import find_folder, load, pick_device
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.lab import evaluation as ev
from lazyllm_ext.lab.bench.report import write
from lazyllm_ext.lab.bench.request import numbers
from lazyllm_ext.lab.evaluation.summary import balanced_mean
from lazyllm_ext.lab.tools import machine
from lazyllm_ext.lab.tools.tables import show, table_of
from lazyllm_ext.lab.tune import trial
from lazyllm_ext.lab.tune.reference import DenseModel
from lazyllm_ext.progress_bar import track
from lazyllm_ext.schedule import PruningSchedule

RESULTS = Path(__file__).resolve().parent / "results"
NEVER = 2**31 - 1
WAYS = ("dense", "too short", "drops")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def measure(
    model: Annotated[str, typer.Option(help="Folder of a transformers model, or 'demo'.")],
    tasks: Annotated[list[Path], typer.Option(help="JSON lines, or a folder; may be repeated.")],
    lengths: Annotated[str, typer.Option(help="Prompt tokens, commas between.")] = (
        "64,96,128,192,256,384,512,768,1024"
    ),
    schedules: Annotated[str, typer.Option(help="Shipped names or files.")] = "balanced,fast",
    target_tokens: Annotated[int, typer.Option(help="Of the items that are cut.")] = 2000,
    skip: Annotated[int, typer.Option(help="First items of each task left out.")] = 0,
    limit: Annotated[int, typer.Option(help="Items of each task after these.")] = 2,
    new_tokens: Annotated[int, typer.Option(help="Most tokens of each continuation.")] = 16,
    rounds: Annotated[int, typer.Option(help="Prefills of each kind that are timed.")] = 15,
    dtype: Annotated[str, typer.Option(help="As in lazyllm-ext eval.")] = "float32",
    name: Annotated[str, typer.Option(help="Name of the result files.")] = "short-prompts",
) -> None:
    """Measure every schedule at every length; write benchmarks/results/NAME.json and NAME.md."""
    with as_input_error(ValueError):
        wanted = numbers("lengths", lengths)
        chosen = ev.choose(ev.read_tasks(tasks).items, [target_tokens], skip + limit).items
        first = {item.id for item in ev.choose(chosen, [target_tokens], skip).items}
        items = [item for item in chosen if item.id not in first]
        loaded_schedules = [PruningSchedule.load(part) for part in schedules.split(",")]
    folder = find_folder(model, quiet=False)
    tokenizer, loaded = load(folder, dtype, pick_device("cpu"))
    subject, dense = ev.Subject(loaded, tokenizer), DenseModel(loaded)
    with as_input_error(ValueError):
        placed = [
            replace(at_layers(schedule, dense, folder.name), min_tokens=0)
            for schedule in loaded_schedules
        ]
    prompts = [(item, subject.encode(item).ids) for item in items]
    times = [_times(loaded, placed, _cut(prompts[0][1], n), rounds) for n in track(wanted, "times")]
    begins = sorted({schedule.boundaries[0].layer or 0 for schedule in placed})
    outcomes: list[dict[str, Any]] = []
    for item, ids in track(prompts, "items"):
        for length in wanted:
            reference = dense.reference(_cut(ids, length), new_tokens, subject.stop, begins)
            for number, schedule in enumerate(placed):
                outcome = asdict(trial.run(dense.decoder, schedule, reference))
                outcome |= {"item": item.id, "task": item.task, "category": item.category}
                outcomes.append({"schedule": number, "length": length, **outcome})
    result = {
        "machine": machine.describe(),
        "model": folder.name,
        "dtype": dtype,
        "schedules": [schedule.to_dict() for schedule in placed],
        "times": times,
        "outcomes": outcomes,
    }
    tables = [
        _table(number, schedule, [row for row in times if row["schedule"] == number], outcomes)
        for times in [[row for rows in times for row in rows]]
        for number, schedule in enumerate(placed)
    ]
    write(RESULTS / name, command_line(), result, tables, [])
    show(tables)


def _cut(ids: Tensor, length: int) -> Tensor:
    """The first and the last half of so many tokens."""
    return torch.cat((ids[: length // 2], ids[ids.numel() - (length - length // 2) :]))


def _times(
    model: Any, schedules: Sequence[PruningSchedule], ids: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Seconds of prefills of one prompt, all kinds in turn in every round."""
    kinds = {(0, WAYS[0]): PruningSchedule()}
    for number, schedule in enumerate(schedules):
        kinds[number, WAYS[1]] = replace(schedule, min_tokens=NEVER)
        kinds[number, WAYS[2]] = schedule
    decoders = {kind: LazyDecoder.from_model(model, schedule) for kind, schedule in kinds.items()}
    seconds: dict[tuple[int, str], list[float]] = {kind: [] for kind in kinds}
    with torch.no_grad():
        for round_number in range(rounds + 1):
            for kind, decoder in decoders.items():
                took = _seconds(decoder, ids)
                if round_number:  # the first is a warm-up
                    seconds[kind].append(took)
    dense = seconds[0, WAYS[0]]
    return [
        {
            "schedule": number,
            "length": ids.numel(),
            "seconds": {WAYS[0]: dense, **{way: seconds[number, way] for way in WAYS[1:]}},
        }
        for number in range(len(schedules))
    ]


def _seconds(decoder: LazyDecoder, ids: Tensor) -> float:
    began = perf_counter()
    hidden = decoder.embed_tokens(ids)
    positions = torch.arange(ids.numel(), device=ids.device)
    decoder.step(hidden, positions, [ids.numel()], decoder.new_state(1, hidden), 1)
    return perf_counter() - began


def _gain(row: dict[str, Any], over: str) -> float:
    """Median over the rounds of a way's seconds ÷ those with dropping."""
    seconds = row["seconds"]
    ratios = [one / other for one, other in zip(seconds[over], seconds[WAYS[2]], strict=True)]
    return statistics.median(ratios)


def _table(
    number: int,
    schedule: PruningSchedule,
    times: Sequence[dict[str, Any]],
    outcomes: Sequence[dict[str, Any]],
) -> Table:
    lines = []
    for row in times:
        mine = [o for o in outcomes if (o["schedule"], o["length"]) == (number, row["length"])]
        kl, agreement, first = (
            balanced_mean((o["category"], o["task"], o[figure]) for o in mine)
            for figure in ("kl", "agreement", "first")
        )
        milliseconds = 1000 * statistics.median(row["seconds"][WAYS[0]])
        lines.append(
            [
                f"{row['length']}",
                f"{milliseconds:.0f}",
                f"{_gain(row, WAYS[0]):.2f}",
                f"{_gain(row, WAYS[1]):.2f}",
                f"{kl:.3f}",
                f"{100 * agreement:.0f}",
                f"{100 * first:.0f}",
            ]
        )
    header = ["prompt tokens", "dense ms", "dense ÷ drops", "too short ÷ drops", "KL, nats"]
    header += ["same tokens %", "same first %"]
    items = len({o["item"] for o in outcomes})
    return table_of(f"{schedule.name}, {items} items", header, lines)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], app, "benchmarks/short_prompts.py"))
