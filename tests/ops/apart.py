"""Runs Python in a process of its own, where the environment decides what the library does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lazyllm_ext.ops

FOLDER = Path(__file__).parent


def run_apart(environment: dict[str, str], *arguments: str) -> str:
    """What `python *arguments` says, started in this folder; it has to end well."""
    package = Path(lazyllm_ext.ops.__file__).parents[2]  # the one under test, wherever it came from
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(package), **environment},
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_smoke_rows(environment: dict[str, str], tests: str, *files: str) -> str:
    """The small part of the tests in these files whose names match."""
    return run_apart(
        environment, "-m", "pytest", "-q", "-m", "smoke and not gpu", "-k", tests,
        "-p", "no:cacheprovider", *files,
    )  # fmt: skip
