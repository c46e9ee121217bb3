"""The C++ program of examples/cpp, built by `make ctest`: the same tokens, and clear errors."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_ids, shared_model

from lazyllm_ext import export

from .conftest import REAL_MODELS, SCHEDULES, answers
from .test_loading import edited

GENERATE = os.environ.get("LAZYLLM_GENERATE", "")
TURNS = [random_ids(40, seed=1), random_ids(9, seed=2)]


def _run(path: Path, text: str, new_tokens: object = 8) -> subprocess.CompletedProcess[str]:
    command = [GENERATE, str(path), str(new_tokens), "1"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _lines(turns: list[list[int]]) -> str:
    return "".join(" ".join(map(str, turn)) + "\n" for turn in turns)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_answers_what_apply_answers(name: str, schedule: str, tmp_path: Path) -> None:
    model = shared_model(name)
    expected, revived = answers(model, SCHEDULES[schedule], TURNS, 8)
    export.torchscript(model, SCHEDULES[schedule], tmp_path / "model.pt")
    done = _run(tmp_path / "model.pt", _lines(TURNS))
    assert done.returncode == 0, done.stderr
    assert done.stdout == _lines(expected)
    last = done.stderr.splitlines()[-1]
    assert last == " ".join(["revived per boundary:", *map(str, revived)])
    assert done.stderr.startswith("40 tokens read, first token after ")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    export.torchscript(shared_model("llama"), "fast", path)
    truncated, foreign = tmp_path / "half.pt", tmp_path / "foreign.pt"
    truncated.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    torch.jit.script(torch.nn.ReLU()).save(str(foreign))
    fails = tmp_path / "fails.pt"
    fails.write_bytes(edited(path.read_bytes(), ".py", b"torch.cat(spans)", b"torch.cat(spans, 5)"))
    for file, text, new_tokens, sentence in [
        (fails, "3", 1, "Dimension out of range (expected to be in range of [-1, 0], but got 5)"),
        (truncated, "3", 1, f"{truncated}: expected an export: "),
        (tmp_path / "none.pt", "3", 1, f"{tmp_path / 'none.pt'}: expected an export: "),
        (foreign, "3", 1, f"{foreign}: expected an export of lazyllm-ext, got another program"),
        (path, "3 four", 1, "standard input: expected token ids, got 'four'"),
        (path, "3 83", 1, "ids: expected 0 to 82, got 3 to 83"),
        (path, "3", 0, "expected a number of at least 1, got '0'"),
    ]:
        done = _run(file, text, new_tokens)
        assert done.returncode == 1
        assert done.stderr.startswith(f"generate: {sentence}")


@pytest.mark.real
@pytest.mark.parametrize("schedule", ["dense", "balanced", "fast"])
@pytest.mark.parametrize("name", sorted(REAL_MODELS))
def test_real_models(name: str, schedule: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(REAL_MODELS[name], dtype=torch.float32).eval()
    turns = [list(range(1000, 1200)), list(range(2000, 2020))]
    expected, _ = answers(model, SCHEDULES[schedule], turns, 6)
    export.torchscript(model, SCHEDULES[schedule], tmp_path / "model.pt")
    assert _run(tmp_path / "model.pt", _lines(turns), 6).stdout == _lines(expected)
