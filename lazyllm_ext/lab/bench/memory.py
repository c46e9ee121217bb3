"""Peak memory of a prefill, beyond that of the loaded model.

On the CPU each figure is a process of its own, so that nothing that another contender left behind
counts: `python -m lazyllm_ext.lab.bench.memory` reads a request as JSON and prints the figure as
JSON.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from .model import Model
from .request import BenchError

_WARM_UP_TOKENS = 32
# Without the current folder on the path: in the project's own it would hide the installed package.
_PROGRAM = f"""
import sys
sys.path = [folder for folder in sys.path if folder]
from {__name__} import _main
_main(sys.argv[1])
"""


def peak_bytes(model: Model, contender: str, tokens: int) -> int:
    """Peak bytes of a prefill of `tokens` tokens, less those of the loaded model.

    Of the process on the CPU, of PyTorch's allocator on a GPU.

    Raises:
        BenchError: the process failed; with the last line that it wrote.
    """
    if model.device != "cpu":
        return _peak_on_gpu(model, contender, tokens)
    request = {
        "model": model.source,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "contender": contender,
        "tokens": tokens,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise BenchError(f"peak memory of {contender} at {tokens} tokens: {reason}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _peak_on_gpu(model: Model, contender: str, tokens: int) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    model.generate(contender, model.prompt(tokens), 1)
    return torch.cuda.max_memory_allocated(model.device) - before


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _measure(model: Model, contender: str, tokens: int) -> int:
    """Peak of this process in a prefill, less what it held before."""
    # Weights are mapped from their file: the first use brings them into memory.
    model.generate(contender, model.prompt(_WARM_UP_TOKENS), 1)
    # What loading gave back to malloc would hide as much of the peak.
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        reset = True
    except OSError:  # not in every container; then loading's own peak may be the higher one
        reset = False
    model.generate(contender, model.prompt(tokens), 1)
    peak = (
        _resident("VmHWM") if reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return max(0, peak - before)


def _main(text: str) -> None:
    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    model = Model(request["model"], request["dtype"])
    print(json.dumps({"peak_bytes": _measure(model, request["contender"], request["tokens"])}))
