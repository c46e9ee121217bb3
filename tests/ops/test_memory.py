"""Operators write nothing behind a tensor's memory: glibc, asked to, looks when it is freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .apart import run_smoke_rows

CHECKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
WRITES_BEHIND = """
import ctypes, torch
tensor = torch.empty(3, dtype=torch.int64)
ctypes.memset(tensor.data_ptr() + tensor.nbytes, 1, 8)
del tensor
"""


def test_nothing_is_written_behind_a_tensor(tmp_path: Path) -> None:
    writes = [sys.executable, "-c", WRITES_BEHIND]
    if subprocess.run(writes, env=CHECKED, cwd=tmp_path, capture_output=True).returncode == 0:
        pytest.skip("this system's malloc has no check")
    tests = "test_equals_reference or test_room_for_fewer"
    assert "passed" in run_smoke_rows(CHECKED, tests, "test_ops.py", "test_errors.py")
