"""Exports in Python: what a file is, and answers from it. Needs torch, not transformers."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from lazyllm_ext.schedule import PruningSchedule

from .description import COMPILED, DESCRIPTION, SCHEDULE, TOKENIZER, Description
from .jit import quiet, running, sentence_of

# The stores get room for so many compiled steps at a time.
_STEPS_AT_ONCE = 64


class Exported:
    """An export that has been loaded: greedy answers, turn after turn; made by `load`.

    Attributes:
        description: what the export is.
        schedule: its schedule.
        tokenizer_json: its tokenizer.json as text, None if it holds none.
        program: the scripted `Program`.
    """

    def __init__(
        self, program: Any, description: Description, files: dict[str, str], step: Any = None
    ):
        self.program = program
        self._step = step  # the compiled decoding step, None without one
        self._tensors: Any = None  # what it works on
        self._room = 0  # for so many steps
        self.description = description
        self.schedule = PruningSchedule.from_json(files[SCHEDULE])
        self.tokenizer_json = files.get(TOKENIZER)
        self._unseen: list[int] = []  # the last answer's last token, which no step has computed yet
        with running():
            program.warm_up()

    def reset(self) -> None:
        """Forget the conversation."""
        self._unseen = []
        self._room = 0
        self.program.reset(1)

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """The likeliest next tokens, one by one, until one that ends the answer or the limit.

        Args:
            ids: new tokens only; the conversation so far is known.
            max_new_tokens: at least 1.

        Raises:
            ValueError: ids that are none of the model's, or more than its context holds.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
        new = [*self._unseen, *ids]
        for _ in range(max_new_tokens):
            token = self._next(new)
            new = self._unseen = [token]
            yield token
            if token in self.description.eos_token_ids:
                return

    def _next(self, ids: list[int]) -> int:
        rows = torch.tensor(ids, dtype=torch.int64, device=self.description.device)
        with running(), torch.no_grad():
            try:
                if self._step is not None and len(ids) == 1 and self._fits():
                    return int(self._compiled(rows).argmax())
                self._room = 0
                return int(self.program(rows, [len(ids)], 1).argmax())
            except torch.jit.Error as error:  # TorchScript wraps what the program raises
                raise ValueError(sentence_of(error)) from None

    def _fits(self) -> bool:
        """Whether the next token is in the middle of what the compiled step was made for."""
        return bool(self.program.fits())

    def _compiled(self, ids: Tensor) -> Tensor:
        if self._room == 0:
            self._room = min(self.program.columns - self.program.lengths()[0], _STEPS_AT_ONCE)
            self._tensors = self.program.compiled_state(self._room)
        logits: Tensor = self._step(ids, self._tensors)
        self._room -= 1
        self.program.count_step()
        return logits


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

    Raises:
        ImportError: the operator library is missing or does not load into this PyTorch.
        ValueError: a file that is missing, truncated or no export, one that needs another PyTorch,
            or another model's tokenizer.
    """
    from lazyllm_ext import ops  # noqa: F401 - loads the operators, or says why it cannot

    path = Path(path)
    description, files = read(path)
    if description.kind not in ("torchscript", "aoti"):
        raise ValueError(f"{path}: kind: expected torchscript or aoti, got {description.kind!r}")
    if TorchVersion(torch.__version__) < description.oldest_torch:
        raise ValueError(
            f"{path}: expected PyTorch {description.oldest_torch} or newer, got {torch.__version__}"
        )
    if tokenizer is not None:
        from .tokenizer import check_tokenizer, tokenizer_json  # a library that torch does not need

        text = tokenizer_json(tokenizer)
        if check_tokenizer(text, description.vocab_size) != description.vocabulary_sha256:
            raise ValueError(
                f"tokenizer: expected the vocabulary that {path.name} was made with, got another "
                f"one: {os.fspath(tokenizer)}"
            )
    with quiet():
        try:
            program = torch.jit.load(os.fspath(path))
        except RuntimeError as error:
            raise ValueError(
                f"{path}: made with PyTorch {description.torch}, does not load into "
                f"{torch.__version__}: {sentence_of(error)}"
            ) from error
    return Exported(program, description, files, _load_step(path, program, description))


def _load_step(path: Path, program: Any, description: Description) -> Any:
    """The compiled decoding step around the program's weights, None without one."""
    if description.kind != "aoti":
        return None
    import torch._inductor  # seconds, which a file without a compiled step need not take

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / COMPILED
        file.write_bytes(_member(path, COMPILED))
        try:
            step = torch._inductor.aoti_load_package(str(file))
        except RuntimeError as error:
            raise ValueError(
                f"{path}: {COMPILED}: compiled with PyTorch {description.torch}, does not load "
                f"into {torch.__version__}: {sentence_of(error)}"
            ) from error
    weights = dict(program.named_parameters(remove_duplicate=False))
    weights.update(program.named_buffers())
    used = {name: weights[name] for name in step.get_constant_fqns()}
    step.load_constants(used, check_full_update=True, user_managed=True)
    return step


def _member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        found = next(m for m in archive.namelist() if m.endswith(f"/extra/{name}"))
        return archive.read(found)


def read(path: Path) -> tuple[Description, dict[str, str]]:
    """The description of an export and its text files, without loading the program.

    Raises:
        ValueError: no such file, a truncated one, or one that is no export.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    files = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                folder, _, name = member.rpartition("/")
                if folder.endswith("/extra") and name in (DESCRIPTION, SCHEDULE, TOKENIZER):
                    files[name] = archive.read(member).decode()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: expected an export, got a truncated or foreign file") from error
    if DESCRIPTION not in files or SCHEDULE not in files:
        raise ValueError(f"{path}: expected an export of lazyllm-ext, got another archive")
    return Description.from_json(files[DESCRIPTION], str(path)), files
