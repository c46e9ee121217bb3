"""A copy of package and tests that mutations are written into, and pytest in it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lazyllm_ext"


def preload() -> None:
    """Import, once for all forks, what the tests import, but the package itself."""
    sys.dont_write_bytecode = True
    os.environ["OMP_NUM_THREADS"] = "1"
    import hypothesis
    import peft
    import pytest
    import torch
    import transformers

    torch.set_num_threads(1)
    for name in ("LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM"):
        getattr(transformers, name)
    del hypothesis, peft, pytest


class Tree:
    """The copy, with the compiled operators of the environment that this runs in."""

    def __init__(self, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        self.folder, self.package = folder, folder / PACKAGE
        self.log = folder / "log"
        skip = shutil.ignore_patterns("__pycache__", "*.so")
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        shutil.copy(ROOT / "pyproject.toml", folder)
        places = [Path(entry or ".") / PACKAGE for entry in sys.path]
        built = next(place for place in places if (place / "_ops.so").exists())
        for library in built.glob("*.so"):
            shutil.copy(library, self.package)

    def run(self, arguments: list[str], limit: float, environment: dict[str, str]) -> int | None:
        """Exit status of pytest in a fork of this process; None: it took longer than `limit`."""
        child = os.fork()
        if child == 0:
            os.setsid()
            os.environ.update(environment)
            os.chdir(self.folder)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.path[:0] = [str(self.folder), str(self.folder / "tests")]
            import pytest

            os._exit(int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *arguments])))
        end = time.monotonic() + limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None


class Run:
    """Rounds of tests with and without mutations: a small one first, then all.

    Args:
        rounds: (arguments of pytest, environment); the next one runs where one passes.
    """

    def __init__(self, tree: Tree, rounds: list[tuple[list[str], dict[str, str]]]):
        self._tree, self._rounds = tree, rounds
        began = time.monotonic()
        if not self.survives({}, 3600):
            raise SystemExit(f"without a mutation the tests do not pass: see {tree.log}")
        self._limit = 3 * (time.monotonic() - began) + 20

    def survives(self, environment: dict[str, str], limit: float | None = None) -> bool:
        """Whether all tests pass."""
        return all(
            self._tree.run(arguments, limit or self._limit, {**own, **environment}) == 0
            for arguments, own in self._rounds
        )
