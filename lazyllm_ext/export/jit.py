"""How torch.jit is used here: quietly, without its optimizer, with its errors in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's word that TorchScript is deprecated: docs/export.md says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


@contextmanager
def running() -> Iterator[None]:
    """TorchScript as it was written.

    Its optimizer profiles the first two calls and compiles for 5 to 10 seconds after each, and the
    operators, which take nearly all the time, are no business of it.
    """
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        yield


def sentence_of(error: Exception) -> str:
    """What was raised inside TorchScript, without its trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    for prefix in ("RuntimeError: ", "ValueError: ", "builtins.ValueError: "):
        last = last.removeprefix(prefix)
    return last
