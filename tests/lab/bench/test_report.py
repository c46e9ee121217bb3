"""Tables, Markdown, drawings and the two command lines."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Ran, folder, run  # noqa: F401 fixtures

from lazyllm_ext.lab.bench import plots
from lazyllm_ext.lab.bench.report import ceilings_table, tables, write

ROOT = Path(__file__).parents[3]
TINY = ("--new-tokens", 2, "--rounds", 1, "--schedules", "fast", "--device", "cpu")


def test_markdown(result: dict[str, Any], tmp_path: Path):
    stem = tmp_path / "new" / "tiny.v1"
    shown = [*tables(result), ceilings_table(result["ceilings"])]
    write(stem, "the command", result, shown, [tmp_path / "tiny-time.svg"])
    lines = (tmp_path / "new" / "tiny.v1.md").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# tiny.v1", "", "`the command`"]
    assert "![tiny-time](tiny-time.svg)" in lines
    assert f"- torch: {result['machine']['torch']}" in lines
    headings = [line for line in lines if line.startswith("## ")]
    assert len(headings) == 4 + 5  # a table for each length, then the other five
    for number, line in enumerate(lines):
        if line.startswith("| ---"):
            columns = lines[number - 1].count("|")
            assert line.count("|") == lines[number + 1].count("|") == columns
    assert json.loads((tmp_path / "new" / "tiny.v1.json").read_text())["command"] == "the command"


def test_one_length_has_no_growth(result: dict[str, Any]):
    one = {**result, "lengths": result["lengths"][:1]}
    del one["growth"]
    assert len(tables(one)) == 3


def test_drawings(result: dict[str, Any], tmp_path: Path):
    pytest.importorskip("matplotlib")
    files = plots.draw(tmp_path / "tiny", result)
    assert [file.name for file in files] == ["tiny-time.svg", "tiny-bytes.svg", "tiny-parts.svg"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert len(text) < 200_000


def test_bench(run: Callable[..., Ran], folder: Path, tmp_path: Path):  # noqa: F811
    output = tmp_path / "out"
    ran = run("bench", folder, "--prompt-tokens", "64,128", *TINY, "--no-memory", "--json",
              "--output", output)  # fmt: skip
    assert ran.status == 0, ran.stderr
    data = json.loads(ran.stdout)
    assert [entry["tokens"] for entry in data["lengths"]] == [64, 128]
    assert data["request"]["schedules"] == ["dense", "fast"]
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text.splitlines()[2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nosuch",), "model: no such folder: nosuch"),
        (("random:tiny", "--prompt-tokens", "1k"), "--prompt-tokens: expected numbers"),
        (("random:tiny", "--schedules", "nosuch"), "nosuch"),
        (("random:tiny", "--device", "tpu"), "--device: expected cpu, cuda or cuda:N"),
        (("random:tiny", "--prompt-tokens", "200000"), "the model's context"),
    ],
)
def test_refusals(run: Callable[..., Ran], arguments: tuple[str, ...], words: str):  # noqa: F811
    ran = run("bench", *arguments)
    assert (ran.status, ran.stdout) == (2, "")
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_output_that_cannot_be_written(run: Callable[..., Ran], tmp_path: Path):  # noqa: F811
    (tmp_path / "file").touch()
    ran = run("bench", "random:tiny", "--prompt-tokens", 32, *TINY, "--no-memory", "--output",
              tmp_path / "file" / "x")  # fmt: skip
    assert ran.status == 2
    assert ran.stderr == f"lazyllm-ext: --output: no such folder: {tmp_path / 'file'}\n"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """benchmarks/run.py, which writes to a folder of the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("run")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    yield module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent.name == "benchmarks":
            del sys.modules[name]


def test_operators(driver: Any, tmp_path: Path):
    assert driver.run(["operators", "--small", "--rounds", "1"], driver.app) == 0
    rows = json.loads((tmp_path / "operators.json").read_text())["operators"]
    assert {row["operator"] for row in rows} == {
        "lazy_attention", "token_importance", "select_tokens", "aux_gather", "aux_scatter_",
        "kv_append_", "linear", "rms_norm", "gated_activation", "rotate", "decoder_layer_",
    }  # fmt: skip
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["ms"] > 0 and row["of_ceiling"] > 0 for row in rows)


def test_model_with_the_oracle(driver: Any, tmp_path: Path):
    line = ["model", "--model", "random:tiny", "--prompt-tokens", "64", *map(str, TINY)]
    assert driver.run([*line, "--no-memory"], driver.app) == 0
    assert list(json.loads((tmp_path / "model.json").read_text())["lengths"][0]["rows"]) == [
        "transformers", "dense", "fast"
    ]  # fmt: skip


def test_batch(driver: Any, tmp_path: Path):
    line = ["batch", "--model", "random:tiny", "--shortest", "20", "--longest", "64", "--size", "3"]
    assert driver.run([*line, "--rounds", "1"], driver.app) == 0
    assert json.loads((tmp_path / "batch.json").read_text())["batch"]["lengths"] == [20, 42, 64]


def test_export(driver: Any, tmp_path: Path):
    """Both formats answer two turns as `apply` does, and the first is timed."""
    line = ["export", "--model", "random:tiny", "--schedules", "dense", "--prompt-tokens", "64"]
    assert driver.run([*line, "--new-tokens", "4", "--rounds", "1"], driver.app) == 0
    result = json.loads((tmp_path / "export.json").read_text())["export"]["dense"]
    contenders = ["torchscript", "aoti"]
    assert result["verified"] == {"read": [64, 32], "equal": [4, 4], "by": contenders}
    assert list(result["rows"]) == ["apply", *contenders]


def test_driver_refuses_in_one_sentence(driver: Any, capsys: pytest.CaptureFixture[str]):
    assert driver.run(["operators", "--dtypes", "int8"], driver.app, "run.py") == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: operators: expected rounds")
    assert len(error.splitlines()) == 1
