"""SnapKV as kvpress has it, beside the dense model, on the tasks of lazyllm-ext eval. CPU, Linux.

    python benchmarks/snapkv.py --model FOLDER --tasks tasks/ --lengths 2000 --limit 3 --keep 0.35

kvpress needs an older transformers than LazyLLM, so the first run makes an environment under
build/snapkv, in which the packages of this Python are used but for those that kvpress needs older,
and every run starts itself again there. Results are kept in build/snapkv-records item by item: the
same command goes on from there, and writes the tables when all items are done.
"""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from lazyllm_ext.cli.app import run
from lazyllm_ext.cli.bench import command_line
from lazyllm_ext.cli.errors import CommandError, as_input_error
from lazyllm_ext.cli.loading import find_folder, load
from lazyllm_ext.lab import evaluation as ev
from lazyllm_ext.lab.bench.request import numbers
from lazyllm_ext.lab.evaluation.report import to_markdown
from lazyllm_ext.lab.evaluation.sessions import PlainSession
from lazyllm_ext.lab.evaluation.subject import Prompt
from lazyllm_ext.lab.tools import machine
from lazyllm_ext.lab.tools.files import write_pair

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE.parent / "build" / "snapkv"
RECORDS = HERE.parent / "build" / "snapkv-records"
PYTHON = str(ENVIRONMENT / "bin" / "python")
KVPRESS = "kvpress==0.5.5"
NOTE = (
    "SnapKV computes the whole prompt in every layer, and then drops stored keys and values: in "
    "each key head those that the last queries, the question among them, attend to least. So the "
    "first token is not sooner; memory is saved after the prefill, and reading in decoding. The "
    "operations do not count its scoring. Times are of one run, and measure nothing if other work "
    "ran beside it."
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class SnapKVSession(PlainSession):
    """Plain transformers, with a press around the prefill and none around what follows.

    Args:
        press: kvpress's SnapKVPress. It cannot score a prompt that is within its window; such a
            prompt stays as it is.
    """

    def __init__(self, subject: ev.Subject, ids: Tensor, press: Any):
        super().__init__(subject, ids)
        self.press = press

    def prefill(self) -> Tensor:
        scored = self.ids.numel() > self.press.window_size
        with self.press(self.subject.model) if scored else nullcontext():
            logits = super().prefill()
        # Positions go on after the whole prompt, the mask after what is left of it.
        self.stored = self.cache.get_seq_length()
        return logits


def snapkv(keep: float) -> ev.Contender:
    """SnapKV with kvpress's own window and pooling; `keep` of the stored keys stays."""
    from kvpress import SnapKVPress

    press = SnapKVPress(compression_ratio=1 - keep)
    identity = {"kind": "snapkv", "keep": keep, "kvpress": version("kvpress")}
    identity |= {"window": press.window_size, "pool": press.kernel_size}

    @contextmanager
    def open(subject: ev.Subject, item: ev.Item, prompt: Prompt, seed: int) -> Iterator[Any]:
        yield SnapKVSession(subject, prompt.ids, press)

    return ev.Contender(f"snapkv:{keep:g}", identity, open)


@app.command()
def compare(
    model: Annotated[str, typer.Option(help="Folder of a transformers model, or 'demo'.")],
    tasks: Annotated[list[Path], typer.Option(help="JSON lines, or a folder; may be repeated.")],
    keep: Annotated[float, typer.Option(help="Part of the stored keys that stays.")] = 0.35,
    lengths: Annotated[str, typer.Option(help="target_tokens, commas between.")] = "2000",
    limit: Annotated[int, typer.Option(help="Items of each task and length.")] = 3,
    name: Annotated[str, typer.Option(help="Name of the result files.")] = "snapkv",
) -> None:
    """Score both on every item, in float32; write benchmarks/results/NAME.json and NAME.md."""
    if not 0 < keep <= 1 or limit < 1:
        raise CommandError(
            f"snapkv: expected 0 < keep <= 1 and a limit from 1 on, got {keep} and {limit}"
        )
    with as_input_error(ValueError):
        nominal = numbers("lengths", lengths)
        items = ev.choose(ev.read_tasks(tasks).items, nominal, limit).items
    if Path(sys.prefix).resolve() != ENVIRONMENT:
        _install()
        os.execv(PYTHON, [PYTHON, *sys.argv])
    folder = find_folder(model, quiet=False)
    report = _evaluate(folder, items, [ev.parse_contender("dense"), snapkv(keep)])
    about = {"command": command_line(), **machine.describe(), "kvpress": version("kvpress")}
    text = [to_markdown(report), NOTE, "", *(f"- {key}: {about[key]}" for key in about)]
    write_pair(HERE / "results" / name, {**about, "note": NOTE, **report.to_dict()}, text)
    print("\n".join(text))


def _install() -> None:
    """Make the environment, if it is not complete."""
    marker = ENVIRONMENT / "installed"
    if marker.exists():
        return
    print(f"installing {KVPRESS} in {ENVIRONMENT} (minutes, once)", file=sys.stderr)
    venv.create(ENVIRONMENT, clear=True)
    places = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
    inner, outer = sysconfig.get_path("purelib", vars=places), sysconfig.get_path("purelib")
    Path(inner, "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
    # torch by the version that is there, so that no other is looked for.
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.run([*pip, KVPRESS, f"torch=={torch.__version__}"], check=False).returncode:
        raise CommandError(f"snapkv: {KVPRESS} could not be installed", status=1)
    marker.touch()


def _evaluate(folder: Path, items: Any, contenders: list[ev.Contender]) -> ev.EvaluationReport:
    """The report of these items; those that are finished already are not run again."""
    tokenizer, model = load(folder, "float32", "cpu")
    subject, records = ev.Subject(model, tokenizer), ev.Records(RECORDS)
    digest = ev.model_digest(folder)
    setting = {"dtype": "float32", "device": "cpu", "transformers": version("transformers")}
    evaluation = ev.Evaluation(subject, items, contenders, records, digest, setting)
    evaluation.run(lambda job, done: print(done.item, done.contender, done.score, file=sys.stderr))
    finished = evaluation.finished()
    left_out = evaluation.skipped
    return ev.EvaluationReport(folder.name, setting, contenders, "dense", finished, left_out)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], app, "benchmarks/snapkv.py"))
