"""Damaged files of a saved prefill: each is refused in one sentence that says what is wrong."""

from __future__ import annotations

import json
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
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    return load_file(path), metadata


def _assert_refused(lazy: Any, path: Path, said: str) -> None:
    with pytest.raises(ValueError) as error:
        lazy.load(path)
    sentence = f"path: {path}: expected a saved prefill, got a damaged one: {said}"
    assert str(error.value) == sentence


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
    save_file(tensors, path, metadata)
    _assert_refused(lazy, path, said)


def test_a_tensor_too_many(lazy: Any, path: Path) -> None:
    tensors, metadata = _read(path)
    save_file({**tensors, "keys.4": tensors["keys.3"].clone()}, path, metadata)
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
    save_file(tensors, path, metadata)
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
    save_file(tensors, path, {**metadata, "schedule": json.dumps(rules)})
    name = "max_rebirth" if change == "more" else "max_revive"
    with pytest.raises(ValueError, match=f"under a schedule with other {name}$"):
        lazy.load(path)


def test_a_damaged_header(lazy: Any, path: Path) -> None:
    """One byte of it, wherever: the usual error, or the file is still right."""
    raw = path.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    generator = torch.Generator().manual_seed(6)
    said = set()
    for place in torch.randint(size, (400,), generator=generator).tolist():
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
