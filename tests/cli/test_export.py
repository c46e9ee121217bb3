"""`lazyllm-ext export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyllm_ext import export

from .conftest import Ran


def test_writes_what_loads(run: Callable[..., Ran], folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    ran = run("export", folder, "--schedule", "fast", "-o", file, "--json")
    assert (ran.status, ran.stderr) == (0, "")
    said = json.loads(ran.stdout)
    assert said["bytes"] == file.stat().st_size
    assert said["boundary_layers"] == [1, 2]
    exported = export.load(file, tokenizer=folder / "tokenizer.json")
    assert exported.description.dtype == "float32"
    assert len(list(exported.generate([70, 71, 72], 3))) == 3

    ran = run("export", folder, "-o", file, "--dtype", "bfloat16")
    assert (ran.status, ran.stderr) == (0, "")
    for part in ("torchscript, version 3", "bfloat16", "balanced; boundary layers: 2, of 5"):
        assert part in ran.stdout
    assert export.load(file).description.dtype == "bfloat16"


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["-o", "none/model.pt"], "--output: no such folder: none"),
        (["-o", "/"], "--output: expected a file, got a folder: /"),
        (["-o", "m.pt", "--format", "onnx"], "Invalid value for '--format': "),
        (["-o", "m.pt", "--format", "aoti"], "--schedule: expected max_revive, a bound of "),
        (["-o", "m.pt", "--max-tokens", "0"], "Invalid value for '--max-tokens': "),
        (["-o", "m.pt", "--dtype", "int8"], "Invalid value for '--dtype': "),
        (["-o", "m.pt", "--schedule", "fastest"], "--schedule: got 'fastest', expected one of "),
        (["-o", "m.pt", "--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_bad_input(
    options: list[str],
    sentence: str,
    run: Callable[..., Ran],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("export", folder, *options)
    assert (ran.status, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"lazyllm-ext: {sentence}")
    assert not list(tmp_path.iterdir())
