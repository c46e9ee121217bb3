"""Files that are no export, and programs that lack what an export needs: one sentence each."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import helpers
import pytest
import torch

from lazyllm_ext import export
from lazyllm_ext.export.checksums import add_checksums


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("export") / "model.pt"
    export.torchscript(helpers.tiny_llama(), "fast", path)
    return path.read_bytes()


def edited(data: bytes, name: str, old: bytes, new: bytes) -> bytes:
    """The archive with the members of that ending changed that hold `old`, and new checksums."""
    target, found = io.BytesIO(), False
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as copy:
        for member in source.namelist():
            if member.endswith("/extra/checksums.json"):
                continue
            content = source.read(member)
            if member.endswith(name) and old in content:
                content, found = content.replace(old, new), True
            copy.writestr(member, content)
    assert found
    add_checksums(target)
    return target.getvalue()


def replaced(data: bytes, name: str, content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = next(member for member in archive.namelist() if member.endswith(name))
        return edited(data, name, archive.read(member), content)


def _state_dict() -> bytes:
    target = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, target)
    return target.getvalue()


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda data: data[: len(data) // 2], "expected an export, got a truncated or foreign"),
        (lambda data: b"", "expected an export, got a truncated or foreign file"),
        (lambda data: b"{}", "expected an export, got a truncated or foreign file"),
        (lambda data: _state_dict(), "expected an export of lazyllm-ext, got another archive"),
        (
            lambda data: edited(data, "lazyllm.json", b'version": 3', b'version": 9'),
            "format_version: expected 2 or 3, got 9; load it with the release of lazyllm-ext that",
        ),
        (
            lambda data: edited(data, "lazyllm.json", b'"dtype"', b'"type"'),
            "lazyllm.json: fields missing or unknown: dtype, type",
        ),
        (
            lambda data: edited(data, "lazyllm.json", b'"2.10"', b'"99.1"'),
            "expected PyTorch 99.1 or newer, got 2",
        ),
        (
            lambda data: edited(data, "lazyllm.json", b'"vocab_size": 83', b'"vocab_size": "83"'),
            "lazyllm.json: vocab_size: expected int, got '83'",
        ),
        (
            lambda data: edited(data, "lazyllm.json", b'_ids": [', b'_ids": [[],'),
            "lazyllm.json: eos_token_ids: expected list[int], got [[], ",
        ),
        (
            lambda data: edited(data, "lazyllm.json", b'"torchscript"', b'"onnx"'),
            "kind: expected torchscript or aoti, got 'onnx'",
        ),
        (lambda data: replaced(data, "lazyllm.json", b"[]"), "lazyllm.json: expected an export's"),
        (
            lambda data: edited(data, "lazyllm.json", b'"torchscript"', b'"aoti"'),
            "decode.pt2: expected a compiled decoding step, got none",
        ),
        (
            lambda data: edited(data, "schedule.json", b'"window": ', b'"window": null, "w": '),
            "schedule: expected only the fields ",
        ),
        (lambda data: replaced(data, "schedule.json", b'{"window": 0}'), "schedule: window: "),
        (lambda data: replaced(data, "schedule.json", b"{"), "schedule.json: expected JSON, got"),
        (lambda data: replaced(data, "schedule.json", b"[]"), "schedule: expected a"),
        (lambda data: replaced(data, "schedule.json", b""), "schedule.json: expected JSON, got"),
        (lambda data: replaced(data, "schedule.json", b"\xff"), "schedule.json: expected UTF-8"),
        (
            lambda data: edited(data, ".py", b"torch.cat(spans)", b"torch.dog(spans)"),
            f"made with PyTorch {torch.__version__}, does not load into {torch.__version__}: "
            "Unknown builtin op: aten::dog.",
        ),
        (
            lambda data: edited(data, ".py", b"def warm_up", b"def warm_down"),
            f"made with PyTorch {torch.__version__}, does not load into {torch.__version__}: ",
        ),
        (
            lambda data: edited(data, ".py", b"torch.cat(spans)", b"torch.cat(spans, 5)"),
            f"made with PyTorch {torch.__version__}, does not load into {torch.__version__}: "
            "Dimension out of range",
        ),
    ],
)  # fmt: skip
def test_no_export(
    change: Callable[[bytes], bytes], sentence: str, exported: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(change(exported))
    with pytest.raises(ValueError) as raised:
        export.load(path)
    assert str(raised.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(raised.value)


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, taken out or put in, by lot."""
    kind, place = chance.randrange(3), chance.randrange(len(data))
    if chance.random() < 0.5:  # the end holds what names the members
        place = len(data) - 1 - chance.randrange(min(len(data), 6000))
    count = chance.choice([1, 4, 64])
    noise = chance.randbytes(count)
    return data[:place] + (noise if kind else b"") + data[place + (count if kind < 2 else 0) :]


def test_damaged_by_lot(exported: bytes, tmp_path: Path) -> None:
    """It loads, or says in one sentence that it does not; nothing else, and the process lives."""
    path, sentences = tmp_path / "model.pt", []
    for seed in range(200):
        path.write_bytes(_damaged(exported, random.Random(seed)))
        try:
            export.load(path)
        except ValueError as error:
            sentences.append(str(error))
    assert len(sentences) > 50
    wrong = [said for said in sentences if not said.startswith(f"{path}: ") or "\n" in said]
    assert wrong == []


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        export.load(tmp_path / "model.pt")
    assert str(raised.value) == f"{tmp_path / 'model.pt'}: no such file"


def test_without_the_operators(exported: bytes, tmp_path: Path) -> None:
    """torch says itself which operator it misses."""
    (tmp_path / "model.pt").write_bytes(exported)
    done = subprocess.run(
        [sys.executable, "-c", f"import torch; torch.jit.load({str(tmp_path / 'model.pt')!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Unknown builtin op: lazyllm::" in done.stderr


@pytest.mark.parametrize(
    "ids, new_tokens, sentence",
    [
        ([3, 83], 1, "ids: expected 0 to 82, got 3 to 83"),
        ([-1], 1, "ids: expected 0 to 82, got -1 to -1"),
        ([], 1, "ids: expected at least one token, got none"),
        ([3] * 1025, 1, "ids: expected at most 1024 tokens, got 1025"),
        ([3], 0, "max_new_tokens: expected at least 1, got 0"),
    ],
)
def test_wrong_input(
    ids: list[int], new_tokens: int, sentence: str, exported: bytes, tmp_path: Path
) -> None:
    (tmp_path / "model.pt").write_bytes(exported)
    loaded = export.load(tmp_path / "model.pt")
    expected = list(loaded.generate([5, 6, 7], 3))
    loaded.reset()
    with pytest.raises(ValueError) as raised:
        list(loaded.generate(ids, new_tokens))
    assert str(raised.value) == sentence
    loaded.reset()
    assert list(loaded.generate([5, 6, 7], 3)) == expected


@pytest.mark.parametrize("logits_to_keep", [0, -2])
def test_logits_to_keep(logits_to_keep: int, exported: bytes, tmp_path: Path) -> None:
    """Refused before the program's state changes."""
    (tmp_path / "model.pt").write_bytes(exported)
    program = export.load(tmp_path / "model.pt").program
    with pytest.raises(torch.jit.Error, match="logits_to_keep: expected at least 1, got"):
        program(torch.tensor([5, 6]), [2], logits_to_keep)
    assert program.lengths() == [0]


def test_an_operator_that_fails(exported: bytes, tmp_path: Path) -> None:
    """One sentence, and after a reset the export answers as before."""
    path = tmp_path / "model.pt"
    path.write_bytes(
        edited(
            exported, ".py", b"torch.cat(spans)", b"torch.cat(spans, int(torch.gt(len(ids), 9)))"
        )
    )
    loaded = export.load(path)
    expected = list(loaded.generate([5, 6, 7], 3))
    loaded.reset()
    with pytest.raises(RuntimeError) as raised:
        list(loaded.generate([3] * 10, 1))
    assert str(raised.value).startswith("Dimension out of range (expected to be in range of")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError) as refused:
        list(loaded.generate([5, 6, 7], 3))
    assert str(refused.value) == (
        "generate: expected a conversation whose steps ended, got one of which a step failed or "
        "was interrupted; reset() it"
    )
    loaded.reset()
    assert list(loaded.generate([5, 6, 7], 3)) == expected
