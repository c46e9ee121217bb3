"""What is in an export is what was written, or it is refused by the member's name."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
from helpers import random_ids

from lazyllm_ext import export
from lazyllm_ext.export import jit
from lazyllm_ext.export.checksums import add_checksums

from .test_loading import edited

Contents = dict[str, bytes]
ROOT = "model/extra/"
IDS = random_ids(40, seed=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> bytes:
    path = tmp_path_factory.mktemp("export") / "model.pt"
    model = helpers.tiny_llama(vocab_size=259, eos_token_id=None)
    export.torchscript(model, "fast", path, tokenizer=folder / "tokenizer.json")
    return path.read_bytes()


@pytest.fixture(scope="module")
def answer(exported: bytes, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    path = tmp_path_factory.mktemp("whole") / "model.pt"
    path.write_bytes(exported)
    return list(export.load(path).generate(IDS, 8))


def _packed(contents: Contents) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return target.getvalue()


def _contents(data: bytes) -> Contents:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _refused(path: Path) -> str:
    with pytest.raises(ValueError) as raised:
        export.load(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


def _without(contents: Contents) -> Contents:
    """As version 2 wrote it."""
    old = {name: content for name, content in contents.items() if "checksums" not in name}
    new, text = b'"format_version": 3', old[ROOT + "lazyllm.json"]
    assert new in text
    return {**old, ROOT + "lazyllm.json": text.replace(new, b'"format_version": 2')}


def test_bits_by_lot(exported: bytes, answer: list[int], tmp_path: Path) -> None:
    """Wherever: the file is refused, or the bit meant nothing."""
    path, chance, refused = tmp_path / "model.pt", random.Random(3), 0
    for _ in range(60):
        place, bit = chance.randrange(len(exported)), chance.randrange(8)
        flipped = bytes([exported[place] ^ 1 << bit])
        path.write_bytes(exported[:place] + flipped + exported[place + 1 :])
        try:
            loaded = export.load(path)
        except ValueError as error:
            refused += str(error).startswith(f"{path}: ")
        else:
            assert list(loaded.generate(IDS, 8)) == answer
    assert refused > 40


def test_a_bit_of_the_weights(exported: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    weights = {name: data for name, data in _contents(exported).items() if "/data/" in name}
    name, largest = max(weights.items(), key=lambda item: len(item[1]))
    place = exported.index(largest) + len(largest) // 2
    path.write_bytes(exported[:place] + bytes([exported[place] ^ 4]) + exported[place + 1 :])
    assert _refused(path) == f"{name}: expected what its checksum says, got a damaged one"


@pytest.mark.parametrize("member", ["schedule.json", "tokenizer.json", "lazyllm.json"])
def test_a_swapped_member(exported: bytes, member: str, tmp_path: Path) -> None:
    """A right one for this archive, but another one than was written."""
    path, contents = tmp_path / "model.pt", _contents(exported)
    content = contents[ROOT + member]
    contents[ROOT + member] = content.replace(b"}", b" }", 1) if member != "tokenizer.json" else b""
    path.write_bytes(_packed(contents))
    assert _refused(path).startswith(f"model/extra/{member}: expected checksum ")


def _list(change: Callable[[dict[str, Any]], object]) -> Callable[[Contents], None]:
    def changed(contents: Contents) -> None:
        sums = json.loads(contents[ROOT + "checksums.json"])
        change(sums)
        contents[ROOT + "checksums.json"] = json.dumps(sums).encode()

    return changed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda contents: contents.pop(ROOT + "checksums.json"),
         "checksums.json: expected one, got 0"),
        (lambda contents: contents.update({"other/extra/checksums.json": b"{}"}),
         "checksums.json: expected one, got 2"),
        (lambda contents: contents.update({ROOT + "checksums.json": b"[]"}),
         "checksums.json: expected a JSON object, got list"),
        (lambda contents: contents.update({ROOT + "checksums.json": b"{"}),
         "checksums.json: expected JSON, got other text"),
        (lambda contents: contents.update({"model/more": b""}),
         "checksums.json: expected one of each member, got too few or too many: model/more"),
        (lambda contents: contents.pop(ROOT + "tokenizer.json"),
         "checksums.json: expected one of each member, got too few or too many: model/extra/token"),
        (_list(lambda sums: sums.update({"model/version": 1})),
         "model/version: expected checksum 1, got "),
        (_list(lambda sums: sums.pop("model/version")),
         "checksums.json: expected one of each member, got too few or too many: model/version"),
    ],
)  # fmt: skip
def test_a_list_that_does_not_fit(
    exported: bytes, change: Callable[[Contents], object], sentence: str, tmp_path: Path
) -> None:
    path, contents = tmp_path / "model.pt", _contents(exported)
    change(contents)
    path.write_bytes(_packed(contents))
    assert _refused(path).startswith(sentence)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(exported: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(exported)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ROOT + "schedule.json", "{}")
    assert _refused(path) == "expected each member once, got some twice"


def test_without_its_tokenizer(exported: bytes, tmp_path: Path) -> None:
    """The description says that there is one, whatever the list says."""
    path, contents = tmp_path / "model.pt", _contents(exported)
    for name in ("tokenizer.json", "checksums.json"):
        del contents[ROOT + name]
    path.write_bytes(_packed(contents))
    add_checksums(path)
    assert _refused(path) == "tokenizer.json: expected one, as lazyllm.json says, got none"


def test_files_without_a_list(exported: bytes, answer: list[int], tmp_path: Path) -> None:
    """Those of version 2 load. A zip archive has checksums too, which find what was damaged."""
    path = tmp_path / "model.pt"
    old = _packed(_without(_contents(exported)))
    path.write_bytes(old)
    loaded = export.load(path)
    assert loaded.description.format_version == 2
    assert list(loaded.generate(IDS, 8)) == answer
    place = old.index(_contents(exported)["model/data.pkl"]) + 9
    path.write_bytes(old[:place] + bytes([old[place] ^ 1]) + old[place + 1 :])
    assert _refused(path) == "model/data.pkl: expected what its checksum says, got a damaged one"


def test_a_file_that_is_replaced_while_it_is_read(
    exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "model.pt", jit.load
    path.write_bytes(exported)

    def replacing(name: str) -> Any:
        program = read(name)
        path.unlink()
        path.write_bytes(edited(exported, "schedule.json", b"fast", b"slow"))
        return program

    with monkeypatch.context() as patch:
        patch.setattr(jit, "load", replacing)
        said = _refused(path)
    assert said == "expected one file, got another while it was read; load it again"
    assert export.load(path).schedule.name == "slow"
