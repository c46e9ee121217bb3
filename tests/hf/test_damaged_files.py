"""Damaged files of a saved prefill: each is refused in one sentence that says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lazyllm_ext
from lazyllm_ext.hf.cache.tensor_file import write_tensors
from lazyllm_ext.state import to_tensors

from .tiny import PRUNING, left_padded, tiny_model

Change = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def lazy() -> Any:
    return lazyllm_ext.apply(tiny_model("llama"), PRUNING)


@pytest.fixture(scope="module")
def whole(lazy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of 13, 5 and 9 tokens; tokens of each wait at the first boundary.

    Of the second one 0, 3 and 4 are computed in each stage (they are protected), 1 and 2 wait.
    """
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(3, 83, (length,), generator=generator) for length in (13, 5, 9)]
    path: Path = tmp_path_factory.mktemp("whole") / "document.safetensors"
    lazy.save(lazy.prefill(**left_padded(prompts)), path)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A file of the same to damage."""
    return Path(shutil.copy(whole, tmp_path))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What a file holds, but for checksums; `write_tensors` makes new ones."""
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    del metadata["checksums"]
    return load_file(path), metadata


def _assert_refused(lazy: Any, path: Path, said: str, got: str = "a damaged one") -> None:
    """Where `said` ends with a blank, more may follow."""
    with pytest.raises(ValueError) as error:
        lazy.load(path)
    sentence = f"path: {path}: expected a saved prefill, got {got}: {said}"
    assert str(error.value).startswith(sentence)
    assert said.endswith(" ") or str(error.value) == sentence


def entry(*place: int, becomes: int) -> Change:
    """The same tensor with one element changed."""

    def change(tensor: Tensor) -> Tensor:
        tensor[place] = becomes
        return tensor

    return change


def to(dtype: torch.dtype) -> Change:
    return lambda tensor: tensor.to(dtype)


def less(number: int) -> Change:
    return lambda tensor: tensor - number


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:-1]


def narrower(tensor: Tensor) -> Tensor:
    return tensor[:, :-1]


def wider(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:, -1:]], dim=1)


def deeper(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


ONE_D = "expected 1-dimensional torch.int64, got"
OF_LENGTH = "slot.0: expected slots for the tokens that length counts and no others, got"
WAITING = (
    "aux_slot.0: expected slots for the tokens of slot.0 without one in slot.1 and no others, got"
)
ENDS = "expected ascending offsets from 0 to"

# Which tensor, how it is damaged, and what is said of it. 27 slots are used in stage 0, 17 and 10
# in the next ones; 10 and 7 tokens wait.
DAMAGES: list[tuple[str, Change | None, str]] = [
    ("keys.0", None, "expected the tensors of a saved state, got others"),
    ("keys.1", None, "expected the tensors of a saved state, got too few or too many: keys.1"),
    ("keys.1", to(torch.half),
     "keys.1: expected 3-dimensional torch.float32, got 3-dimensional torch.float16"),
    ("keys.1", narrower, "keys.1: expected shape [27, 2, 12], got [27, 1, 12]"),
    ("values.2", shorter, "values.2: expected shape [17, 2, 12], got [16, 2, 12]"),
    ("aux.1", shorter, "aux.1: expected shape [7, 48], got [6, 48]"),
    ("aux.0", narrower, "aux.0: expected shape [10, 48], got [10, 47]"),
    # Token tables: [3, 13].
    ("slot.1", narrower, "slot.1: expected shape [3, 13], got [3, 12]"),
    ("slot.2", shorter, "slot.2: expected shape [3, 13], got [2, 13]"),
    ("slot.2", deeper,
     "slot.2: expected 2-dimensional torch.int64, got 3-dimensional torch.int64"),
    ("aux_slot.0", wider, "aux_slot.0: expected shape [3, 13], got [3, 14]"),
    ("importance.1", wider, "importance.1: expected shape [3, 13], got [3, 14]"),
    ("importance.0", to(torch.double),
     "importance.0: expected 2-dimensional torch.float32, got 2-dimensional torch.float64"),
    ("position.0", narrower, "length: expected 0 to 12, got 13 at place [0]"),
    ("position.0", wider,
     "length: expected 14 in the longest sequence, the columns of position.0, got 13"),
    ("position.0", shorter, "position.0: expected shape [3, 13], got [2, 13]"),
    ("importance.1", entry(1, 2, becomes=-1),
     "importance.1: expected 0 or more, got -1.0 at place [1, 2]"),
    # Slots that were not handed out, twice, for no token and for none that has to have one.
    ("slot.0", entry(1, 0, becomes=27), "slot.0: expected -1 to 26, got 27 at place [1, 0]"),
    ("slot.1", entry(1, 0, becomes=17), "slot.1: expected -1 to 16, got 17 at place [1, 0]"),
    ("slot.2", entry(1, 0, becomes=10), "slot.2: expected -1 to 9, got 10 at place [1, 0]"),
    ("slot.1", entry(1, 1, becomes=-2), "slot.1: expected -1 to 16, got -2 at place [1, 1]"),
    ("aux_slot.0", entry(1, 1, becomes=10), "aux_slot.0: expected -1 to 9, got 10 at place [1, 1]"),
    ("aux_slot.1", entry(1, 0, becomes=7), "aux_slot.1: expected -1 to 6, got 7 at place [1, 0]"),
    ("aux_slot.0", entry(1, 0, becomes=-2), "aux_slot.0: expected -1 to 9, got -2 at place [1, 0]"),
    ("slot.1", entry(1, 3, becomes=8),
     "slot.1: expected each slot once in a sequence, got slot 8 twice in sequence 1"),
    ("aux_slot.0", entry(1, 2, becomes=5),
     "aux_slot.0: expected each slot once in a sequence, got slot 5 twice in sequence 1"),
    ("slot.0", entry(1, 4, becomes=-1), f"{OF_LENGTH} none for token 4 of sequence 1"),
    ("slot.0", entry(1, 5, becomes=0), f"{OF_LENGTH} one for token 5 of sequence 1"),
    ("slot.1", entry(1, 5, becomes=0),
     "slot.1: expected slots for tokens of slot.0 only, got one for token 5 of sequence 1"),
    ("slot.2", entry(1, 1, becomes=0),
     "slot.2: expected slots for tokens of slot.1 only, got one for token 1 of sequence 1"),
    ("slot.1", entry(1, 1, becomes=0), f"{WAITING} one for token 1 of sequence 1"),
    ("aux_slot.0", entry(1, 1, becomes=-1), f"{WAITING} none for token 1 of sequence 1"),
    ("aux_slot.0", entry(1, 0, becomes=0), f"{WAITING} one for token 0 of sequence 1"),
    # Counts.
    ("length", entry(1, becomes=-5), "length: expected 0 to 13, got -5 at place [1]"),
    ("length", entry(0, becomes=112), "length: expected 0 to 13, got 112 at place [0]"),
    ("length", entry(1, becomes=3), f"{OF_LENGTH} one for token 3 of sequence 1"),
    ("length", entry(1, becomes=6), f"{OF_LENGTH} none for token 5 of sequence 1"),
    ("length", less(4),
     "length: expected 13 in the longest sequence, the columns of position.0, got 9"),
    ("length", to(torch.float), f"length: {ONE_D} 1-dimensional torch.float32"),
    ("length", deeper, f"length: {ONE_D} 2-dimensional torch.int64"),
    ("length", lambda lengths: lengths[:0], "length: expected 1 sequence or more, got 0"),
    ("finished", entry(0, becomes=-7), "finished: expected 0 to 13, got -7 at place [0]"),
    ("finished", entry(1, becomes=6), "finished: expected 0 to 5, got 6 at place [1]"),
    ("finished", shorter, "finished: expected shape [3], got [2]"),
    ("used", entry(1, becomes=18), "keys.2: expected shape [18, 2, 12], got [17, 2, 12]"),
    ("used", entry(3, becomes=9), "aux.0: expected shape [9, 48], got [10, 48]"),
    ("used", entry(4, becomes=-1), "used: expected 0 or more, got -1 at place [4]"),
    ("used", shorter, "used: expected shape [5], got [4]"),
    ("freed", entry(0, becomes=10**9), "freed: expected 0 to 108, got 1000000000 at place [0]"),
    ("freed", entry(3, becomes=-1), "freed: expected 0 to 40, got -1 at place [3]"),
    ("freed", to(torch.int32), f"freed: {ONE_D} 1-dimensional torch.int32"),
    ("revived", entry(1, becomes=-1), "revived: expected 0 or more, got -1 at place [1]"),
    ("revived", shorter, "revived: expected shape [2], got [1]"),
    # Active tokens: 8, 3 and 6 after the first boundary, 4, 3 and 3 after the second.
    ("active.0", deeper, f"active.0: {ONE_D} 2-dimensional torch.int64"),
    ("active.0", entry(16, becomes=-2), "active.0: expected -1 or more, got -2 at place [16]"),
    ("active.0", shorter, f"active_offsets.0: {ENDS} 16, the size of active.0, got [0, 8, 11, 17]"),
    ("active_offsets.0", entry(1, becomes=12),
     f"active_offsets.0: {ENDS} 17, the size of active.0, got [0, 12, 11, 17]"),
    ("active_offsets.1", entry(0, becomes=1),
     f"active_offsets.1: {ENDS} 10, the size of active.1, got [1, 4, 7, 10]"),
    ("active_offsets.1", entry(3, becomes=11),
     f"active_offsets.1: {ENDS} 10, the size of active.1, got [0, 4, 7, 11]"),
    ("active_offsets.1", shorter, "active_offsets.1: expected shape [4], got [3]"),
    # What is known of columns: which are without a token, and the document.
    ("absent", None, "columns: expected 5, 5 tokens of sequence 1 and 0 columns without, got 13"),
    ("absent", entry(2, 0, becomes=False),
     "columns: expected 12, 9 tokens of sequence 2 and 3 columns without, got 13"),
    ("absent", entry(0, 0, becomes=True),
     "columns: expected 14, 13 tokens of sequence 0 and 1 columns without, got 13"),
    *(
        (name, change, f"{name}: expected {kind} of shape [3, 13 or fewer], got {got}")
        for name, kind, other in (
            ("absent", torch.bool, torch.int64), ("document", torch.int64, torch.bool)
        )
        for change, got in (
            (shorter, f"{kind} of shape [2, 13]"),
            (wider, f"{kind} of shape [3, 14]"),
            (deeper, f"{kind} of shape [1, 3, 13]"),
            (lambda tensor: tensor[0, 0], f"{kind} of shape []"),
            (to(other), f"{other} of shape [3, 13]"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "said"), [pytest.param(*row, id=f"{row[0]}-{row[2]}") for row in DAMAGES]
)
def test_a_tensor(lazy: Any, path: Path, name: str, change: Change | None, said: str) -> None:
    tensors, metadata = _read(path)
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    write_tensors(path, tensors, metadata)
    _assert_refused(lazy, path, said)


def test_a_tensor_too_many(lazy: Any, path: Path) -> None:
    tensors, metadata = _read(path)
    write_tensors(path, {**tensors, "keys.4": tensors["keys.3"].clone()}, metadata)
    said = "expected the tensors of a saved state, got too few or too many: keys.4"
    _assert_refused(lazy, path, said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("columns", "14",
         "columns: expected 13, 13 tokens of sequence 0 and 0 columns without, got 14"),
        ("columns", "12",
         "absent: expected torch.bool of shape [3, 12 or fewer], got torch.bool of shape [3, 13]"),
        ("columns", "²", "columns: expected a number below 10^18, got '²'"),
        ("columns", "-13", "columns: expected a number below 10^18, got '-13'"),
        ("columns", "", "columns: expected a number below 10^18, got ''"),
        ("columns", "1" + 30 * "0",
         "columns: expected a number below 10^18, got '100000000000...0000000000000'"),
        ("columns", None, "expected the fields of one, got no columns"),
        ("model", None, "expected the fields of one, got no model"),
        ("schedule", None, "expected the fields of one, got no schedule"),
        ("schedule", "3", "schedule: expected a JSON object, got 3"),
        ("schedule", "[]", "schedule: expected a JSON object, got []"),
        ("schedule", "no",
         "schedule: expected JSON, got other text (Expecting value: line 1 column 1 (char 0))"),
        ("schedule", '{"window": 2, "window": 2}',
         "schedule: expected each field once, got 'window' twice"),
    ],
)  # fmt: skip
def test_a_field(lazy: Any, path: Path, name: str, value: str | None, said: str) -> None:
    tensors, metadata = _read(path)
    del metadata[name]
    if value is not None:
        metadata[name] = value
    write_tensors(path, tensors, metadata)
    _assert_refused(lazy, path, said)


@pytest.mark.parametrize("change", ["more", "less"])
def test_a_schedule_of_other_fields(lazy: Any, path: Path, change: str) -> None:
    """max_revive is null in this one, and is not the same as no max_revive."""
    tensors, metadata = _read(path)
    rules = json.loads(metadata["schedule"])
    if change == "more":
        rules["max_rebirth"] = None
    else:
        assert rules.pop("max_revive") is None
    write_tensors(path, tensors, {**metadata, "schedule": json.dumps(rules)})
    name = "max_rebirth" if change == "more" else "max_revive"
    with pytest.raises(ValueError, match=f"under a schedule with other {name}$"):
        lazy.load(path)


def test_a_damaged_header(lazy: Any, path: Path) -> None:
    """One byte of it, wherever: the usual error, or the file is still right."""
    raw = path.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    generator = torch.Generator().manual_seed(6)
    said = set()
    for place in torch.randint(size, (200,), generator=generator).tolist():
        for byte in (raw[place] ^ 1, ord("x"), ord("{")):
            path.write_bytes(raw[:place] + bytes([byte]) + raw[place + 1 :])
            try:
                lazy.load(path)
            except ValueError as error:
                said.add(str(error))
    assert len(said) > 100
    assert all(sentence.startswith(f"path: {path}: expected ") for sentence in said)


@pytest.mark.parametrize("end", [0, 3, 8, 100, -1])
def test_a_file_that_is_cut_off(lazy: Any, path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match="expected a saved prefill, got a damaged one or ano"):
        lazy.load(path)


def _said(lazy: Any, path: Path) -> str | None:
    """What is said of a file; None where it loads."""
    try:
        lazy.load(path)
    except ValueError as error:
        return str(error)
    return None


def test_a_bit_anywhere(lazy: Any, path: Path) -> None:
    """Each is found: no file loads that is not what was written."""
    raw = path.read_bytes()
    generator = torch.Generator().manual_seed(8)
    size = 8 + int.from_bytes(raw[:8], "little")
    tensors = torch.randint(size, len(raw), (200,), generator=generator)
    for place in [*range(0, size, 31), *tensors.tolist()]:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        said = _said(lazy, path)
        assert said is not None, place
        assert said.startswith(f"path: {path}: expected "), said
        assert "\n" not in said
        if place >= size:
            assert ": expected checksum " in said


@pytest.mark.parametrize("name", ["keys.2", "importance.0", "position.0", "document"])
def test_a_tensor_of_zeros_is_not_what_was_written(lazy: Any, path: Path, name: str) -> None:
    """In its right place, with the checksums of the file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, path, metadata)
    _assert_refused(lazy, path, f"{name}: expected checksum ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sums: sums.pop("keys.1"), "checksums: expected one of each tensor, got too few "
         "or too many: keys.1"),
        (lambda sums: sums.update(a=1), "checksums: expected one of each tensor, got too few "
         "or too many: a"),
        (lambda sums: sums.update(used="1"), "used: expected checksum 1, got "),
        (lambda sums: sums.pop("__metadata__"), "__metadata__: expected checksum None, got "),
    ],
)  # fmt: skip
def test_checksums(lazy: Any, path: Path, change: Callable[[Any], object], said: str) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    sums = json.loads(metadata["checksums"])
    change(sums)
    save_file(load_file(path), path, {**metadata, "checksums": json.dumps(sums)})
    _assert_refused(lazy, path, said)
    save_file(load_file(path), path, {**metadata, "checksums": "[]"})
    said = "checksums: expected a JSON object, got []"
    _assert_refused(lazy, path, said, "a damaged one or another file")


def test_two_tensors_in_each_others_place(lazy: Any, path: Path) -> None:
    """Their checksums go along; the names are part of them."""
    tensors, _ = _read(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    sums = json.loads(metadata["checksums"])
    for both in (tensors, sums):
        both["keys.0"], both["values.0"] = both["values.0"], both["keys.0"]
    save_file(tensors, path, {**metadata, "checksums": json.dumps(sums)})
    _assert_refused(lazy, path, "keys.0: expected checksum ")


def test_files_of_before_checksums(lazy: Any, path: Path) -> None:
    """They load, unless they say that they have some."""
    tensors, metadata = _read(path)
    save_file(tensors, path, metadata)
    _assert_refused(lazy, path, "expected the fields of one, got no checksums")
    old = {**metadata, "format": "lazyllm-ext prefill 1"}
    save_file(tensors, path, old)
    assert lazy.load(path).get_seq_length() == 13
    tensors["keys.0"][0] += 1
    save_file(tensors, path, old)
    assert lazy.load(path).get_seq_length() == 13
    save_file(tensors, path, {**old, "checksums": "{}"})
    _assert_refused(lazy, path, "__metadata__: expected checksum None, got ")


def test_a_bool_of_other_bytes(lazy: Any, path: Path) -> None:
    tensors, metadata = _read(path)
    tensors["absent"] = torch.full_like(tensors["absent"], 7, dtype=torch.uint8).view(torch.bool)
    write_tensors(path, tensors, metadata)
    _assert_refused(lazy, path, "absent: expected bytes of 0 and 1, got others")


HEADERS = [
    ("[]", "header: expected a JSON object, got []"),
    ('{"__metadata__": {"a": 1}}', "__metadata__: expected a JSON object of texts, got {'a': 1}"),
    ('{"a": []}', "a: expected a JSON object, got []"),
    ('{"a": {"dtype": "F32"}}', "a: shape: expected list[int], got nothing"),
    ('{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
     "a: dtype: expected one of F64, F32, F16, BF16, I64, I32, BOOL, got 'U8'"),
    ('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
     "a: shape: expected sizes of 0 or more, got [-1]"),
    ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
     "a: data_offsets: expected where it begins and ends, got [0]"),
    ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
     "a: data_offsets: expected [0, 8], for torch.float32 of shape [2] after the tensors before "
     "it, got [0, 4]"),
    ('{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}',
     "expected 4000000000000 bytes of tensors, got 8"),
    ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
     "expected 4 bytes of tensors, got 8"),
    ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
     "a: data_offsets: expected [0, 4], for torch.float32 of shape [1] after the tensors before "
     "it, got [4, 8]"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "said"), HEADERS)
def test_a_header(lazy: Any, path: Path, header: str, said: str) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    _assert_refused(lazy, path, said, "a damaged one or another file")


def test_what_is_loaded_stays_when_its_file_changes(lazy: Any, path: Path) -> None:
    """Its memory is its own: a file that is written over, or cut, changes nothing."""
    cache, expected = lazy.load(path), lazy.load(path)
    before = to_tensors(expected.state, expected.plan.spec)
    before = {name: tensor.clone() for name, tensor in before.items()}
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    os.truncate(path, 0)
    after = to_tensors(cache.state, cache.plan.spec)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_saving_replaces_a_file_at_once(lazy: Any, path: Path, tmp_path: Path) -> None:
    """A loaded file is written anew by who loaded it; links are followed, devices refused."""
    link = tmp_path / "link"
    link.symlink_to(path.name)
    cache = lazy.load(link)
    cache.crop(-1)
    lazy.save(cache, link)
    assert link.is_symlink()
    assert lazy.load(path).get_seq_length() == 12
    with pytest.raises(OSError) as error:
        lazy.save(cache, "/dev/full")
    assert str(error.value) == ("path: cannot write /dev/full: expected a file, got a device")
    assert Path("/dev/full").is_char_device()
