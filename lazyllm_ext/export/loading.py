"""Exports in Python: what a file is, and answers from it. Needs torch, not transformers."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import TorchVersion

from lazyllm_ext.json_input import decode, shown
from lazyllm_ext.schedule import PruningSchedule

from . import jit
from .checksums import check_members
from .description import COMPILED, DESCRIPTION, SCHEDULE, TOKENIZER, Description


class Exported:
    """An export that has been loaded: greedy answers, turn after turn; made by `load`.

    One conversation, one turn at a time: a turn that is not read to its end is over as soon as the
    next one begins, or `reset` is called, and says so where it is read on.

    Attributes:
        description: what the export is.
        schedule: its schedule.
        tokenizer_json: its tokenizer.json as text, None if it holds none.
        program: the scripted `Program`. `torch.jit.save` writes its conversation with it.
    """

    def __init__(
        self,
        program: Any,
        description: Description,
        schedule: PruningSchedule,
        tokenizer_json: str | None,
        step: Any = None,
    ):
        self.program = program
        self._step = step  # the compiled decoding step, None without one
        self.description = description
        self.schedule = schedule
        self.tokenizer_json = tokenizer_json
        self._unseen: list[int] = []  # the last answer's last token, which no step has computed yet
        self._begun = 0  # turns and resets so far; the last one may go on
        self._failed = False  # whether a step ended within
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Forget the conversation.

        Raises:
            ValueError: another thread is using it.
        """
        with self._alone(), jit.running():
            self._begun += 1
            self._unseen, self._failed = [], False
            self.program.reset(1)

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """The likeliest next tokens, one by one, until one that ends the answer or the limit.

        Args:
            ids: new tokens only; the conversation so far is known.
            max_new_tokens: at least 1.

        Raises:
            TypeError: ids that are no whole numbers.
            ValueError: ids that are none of the model's, none at all, or more than its context
                holds; a later turn or `reset` has begun; another thread is using the conversation;
                or a step of it failed.
            RuntimeError: an operator failed, in one sentence; `reset` before anything else.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        new = self._checked(ids)
        with self._alone():
            self._begun += 1
            turn = self._begun
        for place in range(max_new_tokens):
            with self._alone():
                if turn != self._begun:
                    raise ValueError(
                        "generate: expected the latest turn of the conversation to go on, got an "
                        "earlier one"
                    )
                token = self._next(new if place > 0 else [*self._unseen, *new])
                new = self._unseen = [token]
            yield token
            if token in self.description.eos_token_ids:
                return

    def _checked(self, ids: Sequence[int]) -> list[int]:
        """Whole numbers that are tokens; torch would make 1 of 1.5."""
        try:
            tokens = [index(token) for token in ids]
        except TypeError as error:
            raise TypeError(f"ids: expected whole numbers, got {shown(ids)}") from error
        if not tokens and not self._unseen:
            raise ValueError("ids: expected at least one token, got none")
        first, last = min(tokens, default=0), max(tokens, default=0)
        if first < 0 or last >= self.description.vocab_size:
            most = self.description.vocab_size - 1
            raise ValueError(f"ids: expected 0 to {most}, got {first} to {last}")
        return tokens

    def _next(self, ids: list[int]) -> int:
        if self._failed:
            raise ValueError(
                "generate: expected a conversation whose steps ended, got one of which "
                "a step failed or was interrupted; reset() it"
            )
        rows = torch.tensor(ids, dtype=torch.int64, device=self.description.device)
        self._failed = True
        try:
            with jit.in_one_sentence(), jit.running():
                if self._step is not None and len(ids) == 1 and self.program.fits():
                    token = int(self._step(rows, self.program.begin_step()).argmax())
                else:
                    token = int(self.program(rows, [len(ids)], 1).argmax())
        except ValueError:  # refused before anything was changed
            self._failed = False
            raise
        self._failed = False
        return token

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """For a block in which no other thread may use the conversation."""
        if not self._lock.acquire(blocking=False):
            raise ValueError(
                "export: expected one thread at a time, got a call while one of another thread runs"
            )
        try:
            yield
        finally:
            self._lock.release()


def load(
    path: str | os.PathLike[str], *, tokenizer: str | os.PathLike[str] | None = None
) -> Exported:
    """Load what `torchscript` or `aoti` wrote.

    The file is a program: load only what you would run. Its weights and code are read by torch.jit,
    which executes no pickle; a compiled step is machine code, and is executed.

    Args:
        path: of the file.
        tokenizer: path of a tokenizer.json that must be the one the export was made with, for
            programs that bring their own.

    All of the file is read and compared with its checksums before anything of it runs.

    Raises:
        ImportError: the operator library is missing or does not load into this PyTorch.
        ValueError: a file that is missing, damaged or no export, one that needs another PyTorch,
            or another model's tokenizer.
    """
    from lazyllm_ext import ops  # noqa: F401 - loads the operators, or says why it cannot

    path = Path(path)
    before = _identity(path)
    description, schedule, text = read(path)
    if TorchVersion(torch.__version__) < description.oldest_torch:
        raise ValueError(
            f"{path}: expected PyTorch {description.oldest_torch} or newer, got {torch.__version__}"
        )
    if tokenizer is not None:
        from .tokenizer import check_tokenizer, tokenizer_json  # a library that torch does not need

        own = tokenizer_json(tokenizer)
        if check_tokenizer(own, description.vocab_size) != description.vocabulary_sha256:
            raise ValueError(
                f"tokenizer: expected the vocabulary that {path.name} was made with, got another "
                f"one: {os.fspath(tokenizer)}"
            )
    try:
        with jit.running():
            program = jit.load(os.fspath(path))
            step = _load_step(path, program) if description.kind == "aoti" else None
            program.warm_up()
    # AttributeError and KeyError: not our program. IndexError, UnicodeDecodeError: torch
    # does not find what damaged code names, or quotes that code.
    except (RuntimeError, AttributeError, LookupError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: made with PyTorch {description.torch}, does not load into "
            f"{torch.__version__}: {jit.sentence_of(error)}"
        ) from error
    if _identity(path) != before:
        raise ValueError(f"{path}: expected one file, got another while it was read; load it again")
    return Exported(program, description, schedule, text, step)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What is another where a file has been replaced or written to; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _load_step(path: Path, program: Any) -> Any:
    """The compiled decoding step on the program's weights."""
    from .compiled import load_step  # seconds, which a file without a compiled step need not take

    with _opened(path) as archive:
        package = _members(archive, COMPILED).get(COMPILED)
    if package is None:
        raise ValueError(f"{path}: {COMPILED}: expected a compiled decoding step, got none")
    return load_step(package, program)


def read(path: Path) -> tuple[Description, PruningSchedule, str | None]:
    """The description of an export, its schedule and its tokenizer, without loading the program.

    Raises:
        ValueError: no such file, a damaged one, or one that is no export.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with _opened(path) as archive:
        members = _members(archive, DESCRIPTION, SCHEDULE, TOKENIZER)
        texts = _texts(path, members)
        description = Description.from_json(texts[DESCRIPTION], str(path))
        try:
            check_members(archive, description.lists_checksums)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    try:
        schedule = PruningSchedule.from_dict(decode(texts[SCHEDULE], SCHEDULE))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tokenizer = texts.get(TOKENIZER)
    if (tokenizer is None) != (description.vocabulary_sha256 is None):
        expected, got = ("one", "none") if tokenizer is None else ("none", "one")
        raise ValueError(
            f"{path}: {TOKENIZER}: expected {expected}, as {DESCRIPTION} says, got {got}"
        )
    return description, schedule, tokenizer


def _texts(path: Path, members: dict[str, bytes]) -> dict[str, str]:
    """The texts of an export by name; the description and the schedule are there."""
    texts = {}
    for name, content in members.items():
        try:
            texts[name] = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {name}: expected UTF-8 text") from error
    if DESCRIPTION not in texts or SCHEDULE not in texts:
        raise ValueError(f"{path}: expected an export of lazyllm-ext, got another archive")
    return texts


def _members(archive: zipfile.ZipFile, *names: str) -> dict[str, bytes]:
    """Those of the named files of this package that the archive holds."""
    found = {}
    for member in archive.namelist():
        folder, _, name = member.rpartition("/")
        if folder.endswith("/extra") and name in names:
            found[name] = archive.read(member)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, for reading.

    Raises:
        ValueError: it cannot be read, or is damaged or none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        UnicodeDecodeError,  # of a member's name
        NotImplementedError,  # these two: members compressed or encrypted as torch writes none
        RuntimeError,
    ) as error:
        raise ValueError(f"{path}: expected an export, got a truncated or foreign file") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
