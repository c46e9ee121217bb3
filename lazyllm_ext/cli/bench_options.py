"""Options of the measurement, shared by `lazyllm-ext bench` and the repository's driver."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NewTokens = Annotated[int, typer.Option(help="Tokens to generate after each prompt.")]
Rounds = Annotated[str, typer.Option(help="Rounds that count; one number, or one for each length.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
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
