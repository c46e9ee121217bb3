"""A TorchScript file answers what `apply` answers, in this process and in one with torch alone."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import random_ids, shared_model
from torch import nn

from lazyllm_ext import export
from lazyllm_ext.export.jit import quiet
from lazyllm_ext.ops.loading import library_path

from .conftest import REAL_MODELS, SCHEDULES, answers

TURNS = [random_ids(40, seed=1), random_ids(9, seed=2)]

# A program that knows nothing of this package but a file and the operators.
_TORCH_ALONE = """
import json, sys
import torch
library, path, turns, new_tokens = sys.argv[1:]
turns, new_tokens = json.loads(turns), int(new_tokens)
torch.ops.load_library(library)
program = torch.jit.load(path)
answers, unseen = [], []
with torch.jit.optimized_execution(False):
    for turn in turns:
        new, answer = unseen + turn, []
        while len(answer) < new_tokens and not (answer and answer[-1] in program.eos_token_ids):
            answer.append(int(program(torch.tensor(new), [len(new)], 1).argmax()))
            new = unseen = answer[-1:]
        answers.append(answer)
assert not any(name.startswith(("lazyllm_ext", "transformers")) for name in sys.modules)
print(json.dumps(answers))
"""


def with_torch_alone(path: Path, turns: list[list[int]], new_tokens: int) -> list[list[int]]:
    arguments = [library_path(), path, json.dumps(turns), new_tokens]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TORCH_ALONE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read: list[list[int]] = json.loads(done.stdout)
    return read


def generated(exported: export.Exported, turns: list[list[int]], new_tokens: int) -> Any:
    return [list(exported.generate(turn, new_tokens)) for turn in turns]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", helpers.MODELS)
def test_answers_what_apply_answers(name: str, schedule: str, tmp_path: Path) -> None:
    model = shared_model(name)
    if schedule != "dense" and not helpers.boundary_layers(model):
        with pytest.raises(ValueError, match="full-attention layer"):
            export.torchscript(model, SCHEDULES[schedule], tmp_path / "model.pt")
        assert not list(tmp_path.iterdir())
        return
    expected, revived = answers(model, SCHEDULES[schedule], TURNS, 8)
    export.torchscript(model, SCHEDULES[schedule], tmp_path / "model.pt")
    exported = export.load(tmp_path / "model.pt")
    assert generated(exported, TURNS, 8) == expected
    assert exported.program.revived() == revived
    exported.reset()
    assert generated(exported, TURNS, 8) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_with_torch_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    model = helpers.tiny_gemma3().to(dtype)
    expected, _ = answers(model, SCHEDULES["fast"], TURNS, 6)
    description = export.torchscript(model, SCHEDULES["fast"], tmp_path / "model.pt")
    assert description.dtype == str(dtype).removeprefix("torch.")
    assert with_torch_alone(tmp_path / "model.pt", TURNS, 6) == expected


def test_a_batch_and_two_conversations_at_once(tmp_path: Path) -> None:
    export.torchscript(shared_model("llama"), SCHEDULES["fast"], tmp_path / "model.pt")
    program = export.load(tmp_path / "model.pt").program
    alone = [program(torch.tensor(TURNS[0]), [40], 1)]
    other = copy.copy(program)
    other.reset(2)
    alone.append(program(torch.tensor(TURNS[1]), [9], 1))
    batch = torch.tensor([*TURNS[0], *TURNS[1]])
    together = other(batch, [40, 9], 1)
    torch.testing.assert_close(together[:1], alone[0], atol=1e-5, rtol=0)
    assert program.lengths() == [49]
    assert other.lengths() == [40, 9]
    assert program.nbytes()[0] > 0
    other.crop([3, 0])
    assert other.lengths() == [37, 9]


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = helpers.tiny_llama().requires_grad_(True)
    before = {name: (p, p.clone()) for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.torchscript(model, "fast", tmp_path / "model.pt")
        export.load(tmp_path / "model.pt")
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert parameter.requires_grad
        assert torch.equal(parameter, values)
    assert "forward" not in model.__dict__


def test_what_the_description_says(tmp_path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = export.torchscript(model, "fast", tmp_path / "model.pt", tokenizer=tokenizer)
    exported = export.load(tmp_path / "model.pt", tokenizer=folder / "tokenizer.json")
    assert exported.description == said
    assert said.model_type == "llama"
    assert said.boundary_layers == [1, 2]
    assert said.vocab_size == 259
    assert said.max_tokens == 256
    assert exported.schedule.name == "fast"
    assert json.loads(exported.tokenizer_json or "")["model"]["type"] == "BPE"
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (tmp_path / "model.pt").stat().st_size > weights


class _Wrapped(nn.Linear):
    """As an adapter or a quantized layer is: another class than nn.Linear."""


def _adapted() -> nn.Module:
    model = helpers.tiny_llama()
    old = model.model.layers[1].self_attn.o_proj
    model.model.layers[1].self_attn.o_proj = _Wrapped(old.in_features, old.out_features)
    return model


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"model": _adapted},
            "export: o_proj: expected Linear, got _Wrapped; merge adapters first",
        ),
        ({"model": lambda: nn.Linear(2, 2)}, "model: expected a transformers model, got Linear"),
        ({"model": lambda: helpers.tiny_llama().train()}, "model: expected inference mode"),
        ({"schedule": "fastest"}, "schedule: got 'fastest', expected one of"),
        ({"path": "none/model.pt"}, "path: no such folder: "),
        ({"path": ""}, "path: expected a file, got a folder: "),
        ({"path": "/dev/null"}, "path: expected a file, got a device: /dev/null"),
        ({"path": "/dev/full"}, "path: expected a file, got a device: /dev/full"),
        ({"tokenizer": "none.json"}, "tokenizer: cannot read 'none.json': No such file"),
        ({"tokenizer": 3}, "tokenizer: expected a fast tokenizer or the path of a tokenizer.json"),
        ({"tokenizer": __file__}, "tokenizer: expected a tokenizer.json, got "),
    ],
)
def test_refuses(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"model": helpers.tiny_llama, "schedule": "fast", "path": "m.pt"}
    arguments.update(change)
    tokenizer = arguments.get("tokenizer")
    with pytest.raises((ValueError, TypeError)) as raised:
        export.torchscript(
            arguments["model"](),
            arguments["schedule"],
            tmp_path / arguments["path"],
            tokenizer=tokenizer,
        )
    assert str(raised.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


# An export where a file may have so many bytes, as on a full disk.
_LITTLE_ROOM = """
import resource, sys
import helpers
from lazyllm_ext import export
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    export.torchscript(helpers.tiny_llama(), "fast", sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_no_room(tmp_path: Path) -> None:
    """One sentence, nothing left behind, and what was there stays."""
    path = tmp_path / "model.pt"
    path.write_text("old")
    command = [sys.executable, "-W", "ignore", "-c", _LITTLE_ROOM, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"path: cannot write \d+ MB to {path}: File too large\n", done.stdout)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_text() == "old"


def test_an_export_replaces_a_file_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_text("old")

    def fails(program: Any, scratch: str, **files: Any) -> None:
        Path(scratch).write_text("half")
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "save", fails)
        with pytest.raises(ValueError) as raised:
            export.torchscript(helpers.tiny_llama(), "fast", path)
    assert str(raised.value) == f"path: cannot write {path}: Input/output error"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_text() == "old"
    export.torchscript(helpers.tiny_llama(), "fast", path)
    assert export.load(path).description.kind == "torchscript"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    link = tmp_path / "link.pt"
    link.symlink_to(path.name)
    written = path.stat().st_ino
    export.torchscript(helpers.tiny_llama(), "fast", link)
    assert link.is_symlink()
    assert path.stat().st_ino != written


@pytest.mark.parametrize(
    "eos, expected",
    [(5, [5]), ([5, 7], [5, 7]), ((5, 7), [5, 7]), (torch.tensor([5, 7]), [5, 7]), (None, [])],
)
def test_end_tokens(eos: Any, expected: list[int], tmp_path: Path) -> None:
    model: Any = helpers.tiny_llama()
    model.generation_config.eos_token_id = eos
    said = export.torchscript(model, "dense", tmp_path / "model.pt")
    assert said.eos_token_ids == expected
    assert export.load(tmp_path / "model.pt").program.eos_token_ids == expected


def test_end_tokens_without_a_generation_config(tmp_path: Path) -> None:
    model: Any = helpers.tiny_llama(eos_token_id=7)
    model.generation_config = None
    assert export.torchscript(model, "dense", tmp_path / "model.pt").eos_token_ids == [7]


def test_refuses_another_models_tokenizer(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError) as raised:
        export.torchscript(
            helpers.tiny_llama(), "fast", tmp_path / "m.pt", tokenizer=folder / "tokenizer.json"
        )
    expected = "tokenizer: expected ids below 83, the model's vocabulary, got 258: another model's"
    assert str(raised.value).startswith(expected)
    model = helpers.tiny_llama(vocab_size=259)
    export.torchscript(model, "fast", tmp_path / "m.pt", tokenizer=folder / "tokenizer.json")
    other = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        export.load(tmp_path / "m.pt", tokenizer=tmp_path / "other.json")
    assert str(raised.value).startswith(
        "tokenizer: expected the vocabulary that m.pt was made with"
    )


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])  # torch 2.13, torch 2.14
def test_quiet(kind: type[Warning]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet():
            warnings.warn("`torch.jit.load` is deprecated. Please switch", kind, stacklevel=1)
        with pytest.raises(kind, match="other"), quiet():
            warnings.warn("other", kind, stacklevel=1)


@pytest.mark.parametrize("name", sorted(REAL_MODELS))
@pytest.mark.parametrize("schedule", ["dense", "balanced", "fast"])
@pytest.mark.real
def test_real_models(name: str, schedule: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(REAL_MODELS[name], dtype=torch.float32).eval()
    turns = [list(range(1000, 1200)), list(range(2000, 2020))]
    expected, _ = answers(model, SCHEDULES[schedule], turns, 6)
    export.torchscript(model, SCHEDULES[schedule], tmp_path / "model.pt")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (tmp_path / "model.pt").stat().st_size < 1.05 * weights
    assert with_torch_alone(tmp_path / "model.pt", turns, 6) == expected
