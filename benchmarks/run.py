"""The benchmark driver of the repository. docs/benchmarks.md says what the columns mean.

    python benchmarks/run.py operators
    python benchmarks/run.py model --model FOLDER --prompt-tokens 4096
    python benchmarks/run.py scale --model FOLDER --lengths 512,1024,2048,4096
    python benchmarks/run.py batch --model FOLDER
    python benchmarks/run.py saved --model FOLDER
    python benchmarks/run.py export --model FOLDER --generate build/examples/generate

Each prints tables and writes benchmarks/results/NAME.json and NAME.md. Timings are medians of
rounds in which all contenders run in turn; quote the ratios, not the seconds.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lazyllm_ext.cli import options
from lazyllm_ext.cli.app import run
from lazyllm_ext.cli.errors import CommandError, as_input_error

RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ModelFolder = Annotated[
    str, typer.Option("--model", help="Folder of a transformers model, 'demo', or random:SHAPE.")
]
Lengths = Annotated[
    str,
    typer.Option("--lengths", "--prompt-tokens", help="Prompt lengths, ascending, commas between."),
]
Name = Annotated[str, typer.Option(help="Name of the result files.")]
Count = Annotated[int, typer.Option(help="Rounds that count; one more warms up.")]


def _measurement(
    name: str, about: str, *, lengths: str, new_tokens: int, rounds: str, schedules: str
) -> None:
    """Make `lazyllm-ext bench` a command with defaults of its own; `name` names its files, too."""

    @app.command(name, help=about)
    def command(
        model: ModelFolder,
        lengths: Lengths = lengths,
        new_tokens: options.NewTokens = new_tokens,
        rounds: options.Rounds = rounds,
        dtype: options.MeasuredDtype = "float32",
        device: options.Device = "cpu",
        schedules: options.Schedules = schedules,
        compiled: options.Compiled = False,
        memory: options.Memory = True,
        name: Name = name,
    ) -> None:
        from oracle_check import verify_pruned

        from lazyllm_ext.cli.bench import make_request, measure_and_write

        request = make_request(
            model, lengths, rounds, schedules, new_tokens=new_tokens, dtype=dtype, device=device,
            compiled=compiled, memory=memory,
        )  # fmt: skip
        measure_and_write(request, RESULTS / name, verify_more=verify_pruned)


_measurement(
    "model",
    "TTFT, decoding, generation, parts and memory: transformers beside every schedule.",
    lengths="4096",
    new_tokens=65,
    rounds="5",
    schedules="dense,paper,balanced,fast",
)
_measurement(
    "scale",
    "The same over several prompt lengths, with a fit, exponents and drawings.",
    lengths="512,1024,2048,4096,8192",
    new_tokens=33,
    rounds="3",
    schedules="dense,balanced,fast",
)


@app.command("batch")
def batch_command(
    model: ModelFolder,
    shortest: int = 512,
    longest: int = 4096,
    size: int = 8,
    new_tokens: options.NewTokens = 1,
    rounds: Count = 5,
    dtype: options.MeasuredDtype = "float32",
    schedules: options.Schedules = "dense,balanced,fast",
    name: Name = "batch",
) -> None:
    """One left-padded batch of prompts of different lengths: how long it takes to generate."""
    from batch import padded_batch

    from lazyllm_ext.lab.bench.model import Model
    from lazyllm_ext.lab.tools.tables import table_of
    from lazyllm_ext.schedule import PruningSchedule

    if not 16 <= shortest <= longest or min(size, rounds, new_tokens) < 1:
        raise CommandError(
            "batch: expected 16 ≤ shortest ≤ longest, and a size, rounds and new tokens from 1 on, "
            f"got {shortest}, {longest}, {size}, {rounds} and {new_tokens}"
        )
    with as_input_error(ValueError, OSError):
        loaded = Model(model, dtype)
        chosen = tuple(schedules.split(","))
        for schedule in chosen:
            PruningSchedule.load(schedule)
    with _wrong_results_refused():
        result = padded_batch(loaded, shortest, longest, size, rounds, chosen, new_tokens)
    ratios = {"transformers": 1.0, **result["transformers_over"]}
    rows = [
        [key, *(f"{value[what]:.2f}" for what in ("median", "min", "max")), f"{ratios[key]:.2f}"]
        for key, value in result["seconds"].items()
    ]
    title = (
        f"{Path(model).name}, {dtype}, {size} prompts of {shortest} to {longest} tokens, "
        f"{new_tokens} new tokens each"
    )
    header = ["", "median s", "min", "max", "transformers ÷"]
    _finish(name, {**_measured_on(), "batch": result}, [table_of(title, header, rows)])


@app.command("saved")
def saved_command(
    model: ModelFolder,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the document.")] = 4096,
    question_tokens: Annotated[int, typer.Option(help="Length of the question.")] = 18,
    rounds: Count = 3,
    dtype: options.MeasuredDtype = "float32",
    schedules: options.Schedules = "dense,balanced,fast",
    name: Name = "saved",
) -> None:
    """First token of a question on a saved prefill (its copy included), beside a fresh run."""
    from saved import saved_prefill

    from lazyllm_ext.lab.bench.model import Model
    from lazyllm_ext.lab.tools.tables import table_of_cells

    if min(prompt_tokens, question_tokens, rounds) < 1:
        raise CommandError(
            "saved: expected tokens and rounds from 1 on, got "
            f"{prompt_tokens}, {question_tokens} and {rounds}"
        )
    with as_input_error(ValueError, OSError):
        loaded = Model(model, dtype)
        results = [
            saved_prefill(loaded, schedule, prompt_tokens, question_tokens, rounds)
            for schedule in schedules.split(",")
        ]
    rows = [
        [
            ("schedule", result["schedule"]),
            ("fresh s", f"{result['seconds']['fresh']['median']:.2f}"),
            ("saved s", f"{result['seconds']['saved']['median']:.2f}"),
            ("saved ÷ fresh", f"{result['saved_over_fresh']:.3f}"),
            ("file MB", f"{result['file_bytes'] / 2**20:.0f}"),
        ]
        for result in results
    ]
    title = f"{Path(model).name}, {dtype}, {question_tokens} tokens after {prompt_tokens}"
    _finish(name, {**_measured_on(), "saved": results}, [table_of_cells(title, rows)])


@app.command("export")
def export_command(
    model: ModelFolder,
    schedules: options.Schedules = "dense,balanced,fast",
    max_revive: Annotated[int, typer.Option(help="What each revives at most per boundary.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt.")] = 1024,
    new_tokens: options.NewTokens = 64,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed; 0 verifies only.")] = 5,
    dtype: options.MeasuredDtype = "float32",
    generate: Annotated[
        Path | None, typer.Option(help="The program of examples/cpp, to be measured as well.")
    ] = None,
    name: Name = "export",
) -> None:
    """Both formats of an export, in Python and C++, beside apply: the same tokens, then times."""
    from exports import exports, tables

    from lazyllm_ext.lab.bench.model import Model
    from lazyllm_ext.lab.tools import machine

    if prompt_tokens < 1 or min(rounds, max_revive) < 0 or new_tokens < 2:
        raise CommandError(
            "export: expected a prompt from 1 on, 2 new tokens, rounds and max_revive from 0 on, "
            f"got {prompt_tokens}, {new_tokens}, {rounds} and {max_revive}"
        )
    with _wrong_results_refused(), as_input_error(ValueError, OSError):
        loaded = Model(model, dtype)
        results = {
            schedule: exports(
                loaded, schedule, max_revive, prompt_tokens, new_tokens, rounds, generate
            )
            for schedule in schedules.split(",")
        }
    content = {"machine": machine.describe(), "export": results}
    if rounds:
        content["ceilings"] = machine.ceilings()
    title = f"{Path(model).name}, {dtype}, max_revive {max_revive}"
    _finish(name, content, tables(title, results))


@app.command("operators")
def operators_command(
    rounds: Count = 15,
    device: options.Device = "cpu",
    dtypes: Annotated[str, typer.Option(help="Commas between.")] = "float32,bfloat16",
    small: Annotated[
        bool, typer.Option("--small", help="A few small cases, to see that the driver runs.")
    ] = False,
    name: Name = "operators",
) -> None:
    """Every operator, verified against float64 or PyTorch, beside the PyTorch way of doing it."""
    from operators import measure

    from lazyllm_ext.cli.loading import pick_device
    from lazyllm_ext.lab.tools.tables import table_of_cells

    names = dtypes.split(",")
    if not set(names) <= {"float32", "bfloat16"} or rounds < 1:
        raise CommandError(
            "operators: expected rounds from 1 on and float32 or bfloat16, "
            f"got {rounds} and {dtypes}"
        )
    device = pick_device(device)
    about = _measured_on(device)
    with _wrong_results_refused():
        results = measure(rounds, names, device, about["ceilings"], small)
    rows = [
        [
            ("operator", row["operator"]),
            ("case", row["case"]),
            ("dtype", row["dtype"]),
            ("ms", f"{row['ms']:.3f}"),
            ("PyTorch ms", f"{row['pytorch_ms']:.3f}"),
            ("PyTorch ÷ ours", f"{row['pytorch_ms'] / row['ms']:.2f}"),
            ("achieved", f"{row['rate']:.1f} {row['unit']}"),
            ("% of the ceiling", f"{row['of_ceiling'] * 100:.0f}"),
        ]
        for row in results
    ]
    shown = [table_of_cells(f"operators, {device}", rows)]
    _finish(name, {**about, "operators": results}, shown)


@contextmanager
def _wrong_results_refused() -> Iterator[None]:
    """What is found to be wrong ends the command with one sentence."""
    from lazyllm_ext.lab.bench import BenchError

    try:
        yield
    except BenchError as error:
        raise CommandError(str(error), status=1) from error


def _measured_on(device: str = "cpu") -> dict[str, Any]:
    """How the result of something that is timed begins."""
    from lazyllm_ext.lab.tools import machine

    return {"machine": machine.describe(device), "ceilings": machine.ceilings(device)}


def _finish(name: str, content: dict[str, Any], shown: list[Table]) -> None:
    """Print and write a result."""
    from lazyllm_ext.cli.bench import command_line
    from lazyllm_ext.lab.bench.report import ceilings_table, write
    from lazyllm_ext.lab.tools.tables import show

    if "ceilings" in content:  # where something was timed
        shown = [*shown, ceilings_table(content["ceilings"])]
    show(shown)
    write(RESULTS / name, command_line(), content, shown, [])
    print(f"wrote {RESULTS / name}.json and .md", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], app, "benchmarks/run.py"))
