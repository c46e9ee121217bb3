"""The CPU kernels of every instruction set there is, and the variable that forces one."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from lazyllm_ext import _C

from .apart import run_apart, run_smoke_rows

NEEDS = {
    "scalar": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
    "amx": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_bf16", "amx_tile"},
}
CALL = """
import torch, lazyllm_ext.ops as ops
one = torch.tensor([0])
store = torch.ones(1, 1, 8)
try:
    ops.lazy_attention(store, one, None, store, store, one, one, None)
except (RuntimeError, ValueError) as error:
    print(error)
"""


def _available(capability: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return capability == "scalar"
    if capability == "amx" and _C.supported_cpu_capability() != "amx":
        return False  # the system may keep the registers from a process, whatever the processor has
    return NEEDS[capability] <= set(
        cpuinfo.read_text().partition("flags")[2].split("\n")[0].split()
    )


# The one in use runs the whole table anyway.
OTHERS = [name for name in NEEDS if _available(name) and name != _C.cpu_capability()]


@pytest.mark.parametrize("capability", OTHERS)
def test_cases_of_each_capability(capability: str) -> None:
    tests = "test_equals_reference or test_a_sequence_alone or test_a_row_alone"
    run_smoke_rows({"LAZYLLM_CPU_CAPABILITY": capability}, tests, "test_ops.py")


@pytest.mark.parametrize(
    "capability", [*(name for name in NEEDS if not _available(name)), "sse9", ""]
)
def test_refuses_a_capability(capability: str) -> None:
    said = run_apart({"LAZYLLM_CPU_CAPABILITY": capability}, "-c", CALL)
    if capability == "":  # set to nothing is not set
        assert said == ""
        return
    assert "LAZYLLM_CPU_CAPABILITY" in said
    assert capability in said
