"""`lazyllm-ext bench`: the measurement, shown and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .errors import CommandError, as_input_error
from .loading import find_folder, pick_device, quiet_transformers

if TYPE_CHECKING:
    from lazyllm_ext.lab.bench import BenchRequest
    from lazyllm_ext.lab.bench.model import Model

PromptTokens = Annotated[
    str, typer.Option(help="Length of the prompt; several with commas show how it scales.")
]


def bench(
    model: options.Folder,
    prompt_tokens: PromptTokens = "2048",
    new_tokens: options.NewTokens = 33,
    rounds: options.Rounds = "3",
    dtype: options.MeasuredDtype = "float32",
    device: options.Device = "auto",
    schedules: options.Schedules = "dense,balanced,fast",
    compiled: options.Compiled = False,
    memory: options.Memory = True,
    as_json: options.Json = False,
    output: options.Output = None,
) -> int:
    """Measure a model under transformers and under every schedule, on this machine."""
    request = make_request(
        model, prompt_tokens, rounds, schedules, new_tokens=new_tokens, dtype=dtype,
        device=device, compiled=compiled, memory=memory,
    )  # fmt: skip
    return measure_and_write(request, output, as_json)


def make_request(
    model: str, lengths: str, rounds: str, schedules: str, **more: Any
) -> BenchRequest:
    """The command's options, with commas between lengths, rounds and schedules.

    Raises:
        CommandError: a model that is not there, or an option that does not fit.
    """
    from lazyllm_ext.lab.bench import BenchRequest
    from lazyllm_ext.lab.bench.request import RANDOM, numbers

    device = pick_device(more.pop("device"))
    folder = model if model.startswith(RANDOM) else str(find_folder(model, quiet=False))
    with as_input_error(ValueError, schedule="--schedules"):
        return BenchRequest(
            model=folder,
            lengths=numbers("prompt lengths", lengths),
            rounds=numbers("rounds", rounds),
            schedules=tuple(schedules.split(",")),
            device=device,
            **more,
        )


def measure_and_write(
    request: BenchRequest,
    output: Path | None,
    as_json: bool = False,
    verify_more: Callable[[Model, str], None] = lambda model, schedule: None,
) -> int:
    """Measure, print, and write `output`.json, .md and, for several lengths, drawings.

    Raises:
        CommandError: what was measured would say nothing, or cannot be written.
    """
    from lazyllm_ext.lab.bench import BenchError, measure
    from lazyllm_ext.lab.bench.report import ceilings_table, tables, write
    from lazyllm_ext.lab.tools.files import check_writable
    from lazyllm_ext.lab.tools.tables import show

    quiet_transformers()
    with as_input_error(ValueError, schedule="--schedules"):
        if output is not None:
            if not output.name:
                raise CommandError(f"--output: expected a name for files, got {output}")
            for suffix in (".json", ".md"):
                check_writable("output", output.with_name(output.name + suffix))
        try:
            result = measure(request, verify_more)
        except BenchError as error:
            raise CommandError(str(error), status=1) from error
    shown = [*tables(result), ceilings_table(result["ceilings"])]
    if as_json:
        print(json.dumps(result))
    else:
        show(shown)
    if output is not None:
        try:
            figures = _figures(output, result)
            write(output, command_line(), result, shown, figures)
        except OSError as error:
            raise CommandError(f"--output: cannot write {output}: {error.strerror}") from error
        print(f"wrote {output}.json and .md", file=sys.stderr)
    return 0


def _figures(output: Path, result: dict[str, Any]) -> list[Path]:
    from lazyllm_ext.lab.bench.plots import draw
    from lazyllm_ext.lab.tools.figures import can_draw

    if len(result["lengths"]) < 2:
        return []
    if not can_draw():
        print("no drawings: matplotlib is not installed", file=sys.stderr)
        return []
    return draw(output, result)


def command_line() -> str:
    """The command line, with the name of the program and of the model only, not their places."""
    program, *arguments = sys.argv
    words = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return " ".join([Path(program).name, *words])
