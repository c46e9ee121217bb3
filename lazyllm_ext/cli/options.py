"""Options that several commands have, each declared once; the benchmark driver has some, too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from .errors import CommandError


def finite(option: typer.CallbackParam, value: float) -> float:
    """Refuse NaN and infinity, which pass typer's `min=0`."""
    if not math.isfinite(value):
        raise CommandError(f"{option.opts[0]}: expected 0 or more, got {value}")
    return value


# Of the commands that load a model.
Folder = Annotated[str, typer.Argument(help="Folder of a transformers model, or 'demo'.")]
Schedule = Annotated[str, typer.Option(help="Name of a shipped schedule, or a JSON file.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="float32, bfloat16, float16; auto: as the model is stored."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: a GPU if there is one.")]
Chat = Annotated[
    bool, typer.Option(help="Chat template for items that say so, if the model has one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object only.")]

# Of measurements.
NewTokens = Annotated[int, typer.Option(help="Tokens to generate after each prompt.")]
Rounds = Annotated[str, typer.Option(help="Rounds that count; one number, or one for each length.")]
MeasuredDtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option(help="float32, bfloat16 or float16."),
]
Schedules = Annotated[
    str, typer.Option(help="Names of shipped schedules or JSON files, commas between.")
]
Compiled = Annotated[
    bool, typer.Option("--compiled", help="Measure transformers under torch.compile as well.")
]
Memory = Annotated[
    bool, typer.Option(help="Measure the peak memory of a prefill, one process each on the CPU.")
]
Output = Annotated[
    Path | None, typer.Option(help="Write the result as OUTPUT.json and OUTPUT.md, and drawings.")
]
