"""`lazyllm-ext export`: a model folder in, a file that runs without Python out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lazyllm_ext.export import Description
from lazyllm_ext.export.writing import aoti, torchscript

from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device


@dataclass(frozen=True)
class Request:
    """The command's options, as the user gave them."""

    model: str
    schedule: str
    format: str
    output: Path
    dtype: str
    device: str
    max_tokens: int
    json: bool


def export(request: Request) -> int:
    """Run the command; returns the exit status.

    Raises:
        CommandError: for what cannot be exported, before anything is written.
    """
    if not request.output.parent.is_dir():
        raise CommandError(f"--output: no such folder: {request.output.parent}")
    if request.output.is_dir():
        raise CommandError(f"--output: expected a file, got a folder: {request.output}")
    device = pick_device(request.device)
    folder = find_folder(request.model, quiet=request.json)
    started = time.perf_counter()
    with _progress() as say:
        say("loading the model")
        tokenizer, model = load(folder, request.dtype, device)
        with as_input_error(ValueError, TypeError):
            arguments = (model, request.schedule, request.output)
            if request.format == "aoti":
                limit = request.max_tokens
                description = aoti(*arguments, tokenizer=tokenizer, max_tokens=limit, say=say)
            else:
                description = torchscript(*arguments, tokenizer=tokenizer, say=say)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    figures = {
        "file": str(request.output),
        "bytes": request.output.stat().st_size,
        "weight_bytes": weights,
        "seconds": round(time.perf_counter() - started, 2),
    }
    if request.json:
        print(json.dumps({**asdict(description), **figures}))
    else:
        _show(description, request.schedule, figures)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("") as status:
        yield lambda stage: status.update(escape(stage))


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
