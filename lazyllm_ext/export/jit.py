"""TorchScript: what compiles, writes, reads and runs it is here; `Program` is what it compiles.

Torch says that TorchScript is deprecated; docs/export.md says what it is for and what it costs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_RAISED = re.compile(r"(?:\w+\.)*\w*Error: (.+)")  # not indented, as quoted source is
_CHECK = re.compile(r"\[enforce fail at \S+\][ .]*")


def script(program: nn.Module) -> Any:
    """A `Program`, compiled."""
    with quiet():
        return torch.jit.script(program)


def save(scripted: Any, path: str, files: Mapping[str, str | bytes]) -> None:
    """Write what `script` gave, with these files in it."""
    with quiet():
        torch.jit.save(scripted, path, _extra_files=files)


def load(path: str) -> Any:
    """The program that `save` wrote; to be called inside `running`."""
    with quiet():
        return torch.jit.load(path)


@contextmanager
def running() -> Iterator[None]:
    """TorchScript as it was written, without gradients, outside of inference mode.

    What is made in inference mode could not be changed by a later call outside. TorchScript's
    optimizer profiles the first two calls and compiles for 5 to 10 seconds after each, and the
    operators, which take nearly all the time, are no business of it.
    """
    plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with plain, torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """What a running program raises, in one sentence.

    Raises:
        ValueError: the program refused its arguments.
        RuntimeError: an operator failed.
    """
    try:
        yield
    except torch.jit.Error as error:  # TorchScript wraps what the program raises
        raise ValueError(sentence_of(error)) from None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(sentence_of(error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's word that TorchScript is deprecated: docs/export.md says it once."""
    with warnings.catch_warnings():
        # A DeprecationWarning in torch 2.13, a FutureWarning in 2.14.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        yield


def sentence_of(error: Exception) -> str:
    """What torch raised, without the traces that it puts before or after it."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    raised = [found[1] for found in map(_RAISED.match, lines) if found]
    said = raised[-1:] or lines[:1] or [type(error).__name__]
    return _CHECK.sub("", said[0]).strip()
