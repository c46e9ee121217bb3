"""What a result was measured on, and the most that this machine can do."""

from __future__ import annotations

import os
import platform
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from lazyllm_ext.version import __version__

from .timing import seconds

_COPY_MEBIBYTES = 256  # past every cache
_PRODUCT = {"cpu": (2048, 1024, 2048), "cuda": (8192, 8192, 8192)}


def cpu_model() -> str:
    """The processor's name as the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: str = "cpu") -> dict[str, Any]:
    """Machine and versions, for the head of every result."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "lazyllm_ext": __version__,
    }


def ceilings(device: str = "cpu", rounds: int = 3) -> dict[str, float]:
    """What the machine reaches at best, in the same process as what is measured.

    Returns:
        `copy_gb_per_s`: bytes read and bytes written, of a copy past the caches;
        `float32_gflop_per_s`, `bfloat16_gflop_per_s`: of a matrix product.
    """
    source = torch.randn(_COPY_MEBIBYTES * 2**18, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device)
    copied = min(copy() for _ in range(rounds + 1))
    result = {"copy_gb_per_s": 2 * source.nbytes / copied * 1e-9}
    rows, inner, columns = _PRODUCT[torch.device(device).type]
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randn(columns, inner, device=device, dtype=dtype)
        product = seconds(partial(torch.nn.functional.linear, x, weight), device)
        took = min(product() for _ in range(rounds + 1))
        result[f"{name}_gflop_per_s"] = 2 * rows * inner * columns / took * 1e-9
    return result
