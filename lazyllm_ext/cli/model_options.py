"""Options of the commands that load a model."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import CommandError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise CommandError(f"--dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    return name


Folder = Annotated[str, typer.Argument(help="Folder of a transformers model, or 'demo'.")]
Schedule = Annotated[str, typer.Option(help="Name of a shipped schedule, or a JSON file.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16; auto: as the model is stored.", callback=_known_dtype
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: a GPU if there is one.")]
Chat = Annotated[
    bool, typer.Option(help="Chat template for items that say so, if the model has one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object only.")]
