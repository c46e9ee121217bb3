"""Finished runs on disk: one JSON line each, only ever appended, so that a killed run goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lazyllm_ext.lab.tools.files import os_error_as

FILE = "records.jsonl"
_PART = "records-of-rank-{}.jsonl"


@dataclass(frozen=True)
class Record:
    """One item under one contender, the mean over its seeds; see `measure.Measured`."""

    key: str  # decides whether it is the one that a run needs; see `key_of`
    # These five are for people, and for the summary.
    contender: str
    item: str
    task: str
    category: str
    length: int | None
    prompt_tokens: int  # n
    score: float
    scores: list[float]  # of each seed; `score` is their mean
    also: dict[str, float]
    output: str
    new_tokens: float
    ttft_seconds: float
    decode_seconds: float
    computed_percent: float
    operations: float
    same_first_token: float  # part of the seeds with the dense model's first token
    kl: float
    profile: list[dict[str, Any]]  # of the first seed; see `measure.profile`


class Records:
    """The records of a folder, in a file that other runs may have begun.

    Of several processes that share a run, rank 0 begins and `gather`s; each of the others reads the
    records, once rank 0 has them, and writes a file of its own beside them.

    Args:
        folder: made if it is not there.
        rank: of this process.

    Raises:
        ValueError: a file cannot be made, read or written.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int = 0):
        self.path = Path(folder) / FILE
        self._own = self.path if rank == 0 else Path(folder) / _PART.format(rank)
        self._by_key: dict[str, Record] = {}
        self._fault = f"output: cannot use {str(self.path.parent)!r}"
        with os_error_as(self._fault):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._own.touch()
            _cut_half_line(self._own)
            self._read(self.path)
        if rank == 0:
            self.gather()

    def gather(self) -> None:
        """Take over what other processes have written; none of them may be writing.

        Raises:
            ValueError: a file cannot be read or written.
        """
        with os_error_as(self._fault):
            for part in sorted(self.path.parent.glob(_PART.format("*"))):
                self._write(self._read(part))
                part.unlink()

    def _read(self, path: Path) -> bytes:
        """Know the records of a file; its whole lines."""
        whole = path.read_bytes()
        lines = whole[: whole.rfind(b"\n") + 1]
        for line in lines.splitlines():
            record = _parse(line)
            if record is not None:
                self._by_key[record.key] = record
        return lines

    def _write(self, lines: bytes) -> None:
        """Append to this process's file; it is on disk when this returns."""
        with os_error_as(self._fault), self._own.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def get(self, key: str) -> Record | None:
        """The record of this key, if it is finished."""
        return self._by_key.get(key)

    def append(self, record: Record) -> None:
        """Write a record; it is on disk when this returns.

        Raises:
            ValueError: it cannot be written, on a full disk for example.
        """
        line = json.dumps(asdict(record), ensure_ascii=False) + "\n"
        self._write(line.encode("utf-8", "surrogatepass"))
        self._by_key[record.key] = record


@contextmanager
def only_run(folder: str | os.PathLike[str]) -> Iterator[None]:
    """While a run writes records to a folder, no other one may; for the first of its processes.

    Raises:
        ValueError: another one does, or the folder cannot be made.
    """
    path = Path(folder) / FILE
    with ExitStack() as stack:
        with os_error_as(f"output: cannot use {str(folder)!r}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = "expected a folder that no other run writes to at the same time"
            raise ValueError(f"output: {said}, got {str(folder)!r}") from None
        except OSError:  # a file system without locks
            pass
        yield


# Of a file of weights: to read all of it would take longer than some evaluations.
_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024


def key_of(
    model: str, setting: Mapping[str, Any], contender: Mapping[str, Any], item: Mapping[str, Any]
) -> str:
    """What a record depends on, as 32 hexadecimal digits.

    Args:
        model: see `model_digest`.
        setting: dtype, device and how prompts are made.
        contender: its identity, schedule content included.
        item: all of its fields.
    """
    data = json.dumps([model, dict(setting), dict(contender), dict(item)], sort_keys=True)
    return hashlib.sha256(data.encode()).hexdigest()[:32]


def model_digest(folder: str | os.PathLike[str]) -> str:
    """A model by its configuration, tokenizer and samples of its weights, not by its place."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix in (".json", ".jinja"):
            digest.update(file.name.encode() + file.read_bytes())
        elif file.is_file() and file.suffix in (".safetensors", ".bin"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as weights:
                for part in range(_SAMPLES):
                    weights.seek(size * part // _SAMPLES)
                    digest.update(weights.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _cut_half_line(path: Path) -> None:
    """Take away a line that was being written when its run was killed."""
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(path, end)


def _parse(line: bytes) -> Record | None:
    """A line of the file; None for one that is not a record of this version."""
    try:
        record = Record(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (record.key, record.contender, record.item, record.task, record.category, record.output)
    numbers = (record.score, record.new_tokens, record.ttft_seconds, record.decode_seconds)
    more = (record.computed_percent, record.operations, record.same_first_token, record.kl)
    right = all(isinstance(text, str) for text in texts) and all(
        isinstance(number, (int, float)) for number in (*numbers, *more, *record.scores)
    )
    return record if right else None
