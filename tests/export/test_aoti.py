"""The decoding step under torch.export, torch.compile and AOTInductor."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import random_ids, shared_model
from torch import Tensor, nn

from lazyllm_ext import LazyDecoder, export
from lazyllm_ext.export.compiled import trace
from lazyllm_ext.export.program import Program
from lazyllm_ext.export.step import DecodingStep
from lazyllm_ext.export.writing import detached

from .conftest import SCHEDULES, answers
from .test_loading import replaced

GENERATE = os.environ.get("LAZYLLM_GENERATE", "")
TURNS = [random_ids(100, seed=1), random_ids(20, seed=2)]
# Above the last turn's first answers: later ones are decoded by the program again.
MAX_TOKENS = 192


def _decoded(decoder: LazyDecoder, step: Any, count: int) -> tuple[Tensor, list[int]]:
    """Logits of `count` steps after a prompt, and the revived tokens."""
    program = Program(decoder, 83, columns=MAX_TOKENS)
    program(torch.tensor(TURNS[0]), [len(TURNS[0])], 1)
    logits = []
    with torch.no_grad():
        for token in random_ids(count, seed=3):
            tensors = program.begin_step()
            for store in [*tensors[0], *tensors[1], *tensors[3]]:
                torch._dynamo.mark_dynamic(store, 0)
            logits.append(step(torch.tensor([token]), tensors))
    return torch.cat(logits), program.revived()


def _bounded(name: str) -> LazyDecoder:
    model = shared_model(name)
    schedule: Any = SCHEDULES["bounded"] if helpers.boundary_layers(model) else "dense"
    return detached(LazyDecoder.from_model(model, schedule, export=True))


@pytest.mark.parametrize("name", helpers.MODELS)
def test_torch_export(name: str) -> None:
    """The same logits and revivals, with every operator of the eager step in the graph."""
    decoder = _bounded(name)
    exported = trace(decoder, MAX_TOKENS)
    expected, revived = _decoded(decoder, DecodingStep(decoder), 40)
    got, revived_too = _decoded(decoder, exported.module(), 40)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert revived_too == revived
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    whole = [layer.one_call for layer in decoder.layers]
    used = {"linear"} | ({"decoder_layer_"} if any(whole) else set())
    if decoder.boundaries or not all(whole):
        used |= {"kv_append_", "lazy_attention", "rotate"}
    if decoder.boundaries:
        used |= {"token_importance", "select_tokens"}
        assert sum(revived) > 0
    assert {f"lazyllm.{operator}.default" for operator in used} <= called


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_torch_compile(name: str) -> None:
    """One graph for all steps, however the stores grow."""
    from torch._dynamo.testing import CompileCounter

    decoder = _bounded(name)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(DecodingStep(decoder).eval(), backend=counter, fullgraph=True)
    expected, revived = _decoded(decoder, DecodingStep(decoder), 64)
    got, revived_too = _decoded(decoder, compiled, 64)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert revived_too == revived
    assert counter.frame_count == 1


@pytest.mark.parametrize("heads", [None, list(range(10))])
def test_constants_are_small_enough_for_the_compiler(heads: list[int] | None) -> None:
    """Those of more than 8 numbers are asked of whoever loads the step, who has but the weights."""
    boundary = {"layer": 0, "keep": 0.5, "heads": heads}
    schedule = {"boundaries": [boundary], "over_heads": "max", "max_revive": 9}
    many = helpers.tiny_llama(num_attention_heads=12, num_key_value_heads=4)
    exported = trace(detached(LazyDecoder.from_model(many, schedule, export=True)), MAX_TOKENS)
    lifted = {name: value for name, value in exported.constants.items() if "lifted" in name}
    assert lifted
    assert max(value.numel() for value in lifted.values()) <= 8


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return helpers.tiny_llama(num_hidden_layers=3, eos_token_id=None)


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aoti") / "model.pt"
    export.aoti(model, SCHEDULES["bounded"], path, max_tokens=MAX_TOKENS)
    return path


def test_compiled_answers_what_apply_answers(model: nn.Module, file: Path) -> None:
    expected, revived = answers(model, SCHEDULES["bounded"], TURNS, 64)
    assert sum(map(len, [*TURNS, *expected])) > MAX_TOKENS
    exported = export.load(file)
    assert exported.description.kind == "aoti"
    for _ in range(2):
        assert [list(exported.generate(turn, 64)) for turn in TURNS] == expected
        assert exported.program.revived() == revived
        exported.reset()


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_damaged_step(content: bytes, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(replaced(file.read_bytes(), "decode.pt2", content))
    with pytest.raises(ValueError) as raised:
        export.load(path)
    assert str(raised.value).startswith(f"{path}: made with PyTorch {torch.__version__}, does not")
    assert "\n" not in str(raised.value)


def test_without_a_compiler(tmp_path: Path) -> None:
    from torch._inductor import config

    # Its own way to set a value and put the old one back; later tests compile again.
    with config.patch({"cpp.cxx": ("no-compiler",)}), pytest.raises(ValueError) as raised:
        export.aoti(shared_model("llama"), "dense", tmp_path / "model.pt", max_tokens=9)
    assert str(raised.value).startswith("export: the decoding step does not compile: ")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not GENERATE, reason="make ctest builds the program, where there is CMake")
def test_compiled_answers_in_cpp(model: nn.Module, file: Path) -> None:
    expected, _ = answers(model, SCHEDULES["bounded"], TURNS, 64)
    lines = ["".join(" ".join(map(str, t)) + "\n" for t in turns) for turns in (TURNS, expected)]
    command = [GENERATE, str(file), "64", "1"]
    done = subprocess.run(command, input=lines[0], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, lines[1])


@pytest.mark.skipif(not GENERATE, reason="make ctest builds the program, where there is CMake")
@pytest.mark.parametrize(
    "content, sentence", [(b"", "missing"), (b"no archive", "does not load: Failed to")]
)
def test_a_damaged_step_in_cpp(content: bytes, sentence: str, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(replaced(file.read_bytes(), "decode.pt2", content))
    done = subprocess.run(
        [GENERATE, str(path)], input="3\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"decode.pt2: {sentence}" in done.stderr


def test_tables_are_as_wide_as_the_compiled_step() -> None:
    """They grow by 64 columns or an eighth, and not past what was compiled while it still fits."""
    decoder = _bounded("llama")
    program = Program(decoder, 83, columns=100)
    for _ in range(2):
        assert not program.fits()
        program(torch.tensor(random_ids(70, seed=1)), [70], 1)
        assert program.fits()
        assert program.state.position[0].size(1) == 100
        program(torch.tensor(random_ids(30, seed=1)), [30], 1)
        assert not program.fits()
        program.reset()


def test_refuses_unbounded_revival(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        export.aoti(shared_model("llama"), "fast", tmp_path / "model.pt")
    assert str(raised.value).startswith("schedule: expected max_revive, a bound of revived tokens")
    with pytest.raises(ValueError) as raised:
        export.aoti(shared_model("llama"), "dense", tmp_path / "model.pt", max_tokens=0)
    assert str(raised.value) == "max_tokens: expected at least 1, got 0"
    assert not list(tmp_path.iterdir())
