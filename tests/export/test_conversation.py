"""One export is one conversation: what two callers do with it at once is refused, or right."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import random_ids

from lazyllm_ext import LazyDecoder, export
from lazyllm_ext.export.jit import quiet, running
from lazyllm_ext.export.program import Program

FIRST, SECOND = random_ids(40, seed=1), random_ids(9, seed=2)
EARLIER = "generate: expected the latest turn of the conversation to go on, got an earlier one"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.pt"
    export.torchscript(helpers.tiny_llama(eos_token_id=None), "fast", path)
    return path


@pytest.fixture
def loaded(file: Path) -> export.Exported:
    return export.load(file)


def _refused(call: Any) -> str:
    with pytest.raises(ValueError) as raised:
        call()
    return str(raised.value)


def test_a_turn_that_another_one_follows(loaded: export.Exported, file: Path) -> None:
    """It is over; the second goes on from what the first has said so far."""
    first, second = loaded.generate(FIRST, 6), loaded.generate(SECOND, 4)
    said = [next(first), next(first), next(second)]
    assert _refused(lambda: next(first)) == EARLIER
    said += list(second)
    other = export.load(file)
    assert said == [*other.generate(FIRST, 2), *other.generate(SECOND, 4)]


def test_a_turn_that_is_read_on_after_a_reset(loaded: export.Exported, file: Path) -> None:
    first = loaded.generate(FIRST, 6)
    next(first)
    loaded.reset()
    assert _refused(lambda: next(first)) == EARLIER
    assert list(loaded.generate(SECOND, 4)) == list(export.load(file).generate(SECOND, 4))


@pytest.mark.parametrize("first", [True, False])
def test_inside_and_outside_of_inference_mode(
    loaded: export.Exported, file: Path, first: bool
) -> None:
    """It does not matter: each turn gives what it gives elsewhere."""
    other = export.load(file)
    for number, turn in enumerate((FIRST, SECOND, FIRST)):
        with torch.inference_mode((number % 2 == 0) is first):
            said = list(loaded.generate(turn, 4))
        assert said == list(other.generate(turn, 4))
    with torch.inference_mode(first):
        loaded.reset()
    assert list(loaded.generate(FIRST, 4)) == list(export.load(file).generate(FIRST, 4))


@pytest.mark.parametrize("inside", [True, False])
def test_a_program_in_inference_mode(loaded: export.Exported, inside: bool) -> None:
    """By itself it cannot choose its mode: a conversation stays in one, or is reset."""
    program, ids = loaded.program, torch.tensor(FIRST)

    def step() -> Any:
        with torch.inference_mode(inside):
            return program(ids, [40], 1).clone()

    def other() -> Any:
        with torch.inference_mode(not inside):
            return program(ids, [40], 1).clone()

    expected = step()
    for call in (other, other):
        with pytest.raises(torch.jit.Error, match="all inside or all outside of inference mode"):
            call()
    assert program.lengths() == [40]
    step()
    assert program.lengths() == [80]
    program.reset(1)
    assert torch.equal(other(), expected)
    program.reset(1)
    assert torch.equal(step(), expected)


def test_threads(loaded: export.Exported, file: Path) -> None:
    """One of them has the conversation, or nobody: an answer is right, or there is a sentence."""
    expected = list(export.load(file).generate(FIRST, 12))
    answers: list[list[int]] = []
    refused: list[str] = []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        try:
            loaded.reset()
            answers.append(list(loaded.generate(FIRST, 12)))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) + len(refused) == 4
    assert set(refused) <= {
        EARLIER,
        "export: expected one thread at a time, got a call while one of another thread runs",
    }
    assert len(refused) >= 3 or all(answer == expected for answer in answers)
    loaded.reset()
    assert list(loaded.generate(FIRST, 12)) == expected


def test_a_step_that_is_interrupted(loaded: export.Exported, file: Path) -> None:
    """Nothing goes on from what may be half a step."""

    class Interrupted:
        def __init__(self, program: Any):
            self._program = program

        def __call__(self, *arguments: Any) -> Any:
            self._program(*arguments)
            raise KeyboardInterrupt

        def reset(self, batch: int) -> None:
            self._program.reset(batch)

    program, loaded.program = loaded.program, Interrupted(loaded.program)
    with pytest.raises(KeyboardInterrupt):
        list(loaded.generate(FIRST, 4))
    loaded.program = program
    assert "a step failed or was interrupted; reset() it" in _refused(
        lambda: next(loaded.generate(SECOND, 4))
    )
    loaded.reset()
    assert list(loaded.generate(SECOND, 4)) == list(export.load(file).generate(SECOND, 4))


def test_a_program_whose_step_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused until it is reset."""
    decoder = LazyDecoder.from_model(helpers.tiny_llama(), "fast", export=True)
    program, ids = Program(decoder, 83, columns=64), torch.tensor(SECOND)
    expected = program(ids, [9], 1)
    program.reset()
    with monkeypatch.context() as patch:
        patch.setattr(decoder.norm, "forward", _fail)
        with pytest.raises(RuntimeError, match="no memory"):
            program(ids, [9], 1)
    for call in (lambda: program(ids, [9], 1), lambda: program.crop([1]), program.begin_step):
        assert _refused(call) == (
            "program: expected one whose last call has ended, got one whose last call failed or is "
            "still running; reset it"
        )
    program.reset()
    assert torch.equal(program(ids, [9], 1), expected)


def _fail(*arguments: Any) -> Any:
    raise RuntimeError("no memory")


def test_wrong_ids_leave_the_conversation(loaded: export.Exported, file: Path) -> None:
    other = export.load(file)
    said = list(loaded.generate(FIRST, 4))
    for wrong in ([83], [3, -1], [10**30]):
        said_of = _refused(lambda ids=wrong: list(loaded.generate(ids, 4)))
        assert said_of == f"ids: expected 0 to 82, got {min(wrong)} to {max(wrong)}"
    with pytest.raises(TypeError, match=r"ids: expected whole numbers, got \[1.5\]"):
        list(loaded.generate([1.5], 4))  # type: ignore[list-item]
    assert said == list(other.generate(FIRST, 4))
    assert list(loaded.generate(SECOND, 4)) == list(other.generate(SECOND, 4))
    loaded.reset()
    assert (
        _refused(lambda: list(loaded.generate([], 4)))
        == "ids: expected at least one token, got none"
    )


def test_what_jit_save_writes(loaded: export.Exported, tmp_path: Path) -> None:
    """The conversation, as docs/export.md says; none after a reset."""
    list(loaded.generate(FIRST, 4))
    for reset, held in ((False, 43), (True, 0)):
        if reset:
            loaded.reset()
        with quiet(), running():
            torch.jit.save(loaded.program, tmp_path / "again.pt")
            assert torch.jit.load(tmp_path / "again.pt").lengths() == [held]
