"""`lazyllm-ext export`: a model folder in, a file that runs without Python out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import options
from .errors import as_input_error
from .loading import find_folder, load, pick_device, settle

if TYPE_CHECKING:
    from lazyllm_ext.export import Description

Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
Format = Annotated[
    Literal["torchscript", "aoti"],
    typer.Option(help="torchscript, or aoti: the decoding step compiled too."),
]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="Of --format aoti: longest context of the compiled step.")
]


def export(
    model: options.Folder,
    output: Output,
    schedule: options.Schedule = "balanced",
    format: Format = "torchscript",
    dtype: options.Dtype = "auto",
    device: options.Device = "cpu",
    max_tokens: MaxTokens = 4096,
    as_json: options.Json = False,
) -> int:
    """Write a model with its schedule as a file that runs without Python."""
    from lazyllm_ext.export.writing import aoti, torchscript
    from lazyllm_ext.lab.tools.files import check_writable

    with as_input_error(ValueError):
        check_writable("--output", output)
    device = pick_device(device)
    folder = find_folder(model, quiet=as_json)
    started = time.perf_counter()
    with Console(stderr=True).status("") as status:

        def say(stage: str) -> None:
            status.update(escape(stage))

        say("loading the model")
        tokenizer, loaded = load(folder, dtype, device)
        settle(loaded, greedy=True)
        write = partial(aoti, max_tokens=max_tokens) if format == "aoti" else torchscript
        with as_input_error(ValueError, TypeError):
            description = write(loaded, schedule, output, tokenizer=tokenizer, say=say)
    figures = {
        "file": str(output),
        "bytes": output.stat().st_size,
        "weight_bytes": sum(p.numel() * p.element_size() for p in loaded.parameters()),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if as_json:
        print(json.dumps({**asdict(description), **figures}))
    else:
        _show(description, schedule, figures)
    return 0


def _show(description: Description, schedule: str, figures: dict[str, Any]) -> None:
    layers = ", ".join(map(str, description.boundary_layers)) or "none"
    rows = {
        "file": figures["file"],
        "format": f"{description.kind}, version {description.format_version}",
        "model": f"{description.model_name} ({description.model_type}), {description.dtype}",
        "weights' SHA-256": description.model_sha256,
        "schedule": f"{schedule}; boundary layers: {layers}, of {description.num_layers}",
        "tokenizer": "in the file" if description.vocabulary_sha256 else "none",
        "needs": f"PyTorch {description.oldest_torch} or newer, and the operator library",
        "size": f"{figures['bytes'] / 1e6:.1f} MB, "
        f"{figures['bytes'] / figures['weight_bytes']:.3f} × the weights",
        "took": f"{figures['seconds']:.1f} s",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(str(value)))
    Console(highlight=False).print(table)
