"""`lazyllm-ext bench`: the measurement, shown and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyllm_ext.lab.bench import BenchError, BenchRequest, measure
from lazyllm_ext.lab.bench.plots import draw
from lazyllm_ext.lab.bench.report import ceilings_table, tables, write
from lazyllm_ext.lab.bench.request import RANDOM, numbers
from lazyllm_ext.lab.tools.figures import can_draw
from lazyllm_ext.lab.tools.tables import show

from .errors import CommandError, as_input_error
from .loading import find_folder, pick_device

if TYPE_CHECKING:
    from lazyllm_ext.lab.bench.model import Model


def make_request(
    model: str, lengths: str, rounds: str, schedules: str, **more: Any
) -> BenchRequest:
    """The command's options, with commas between lengths, rounds and schedules.

    Raises:
        CommandError: a model that is not there, or an option that does not fit.
    """
    device = pick_device(more.pop("device"))
    folder = model if model.startswith(RANDOM) else str(find_folder(model, quiet=False))
    with as_input_error(ValueError):
        return BenchRequest(
            model=folder,
            lengths=numbers("prompt lengths", lengths),
            rounds=numbers("rounds", rounds),
            schedules=tuple(schedules.split(",")),
            device=device,
            **more,
        )


def bench(
    request: BenchRequest,
    output: Path | None,
    as_json: bool = False,
    verify_more: Callable[[Model, str], None] = lambda model, schedule: None,
) -> int:
    """Measure, print, and write `output`.json, .md and, for several lengths, drawings.

    Raises:
        CommandError: what was measured would say nothing, or cannot be written.
    """
    _quiet_transformers()
    with as_input_error(ValueError):
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


def _quiet_transformers() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
