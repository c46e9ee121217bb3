"""`lazyllm-ext info`: what is installed, what was built, and what this machine uses of it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

import lazyllm_ext
from lazyllm_ext.schedule import PruningSchedule, shipped_schedules

from . import options
from .errors import as_input_error

_DISPATCH_KEYS = ("CPU", "CUDA", "Meta")


def info(as_json: options.Json = False) -> int:
    """Show versions, the instruction set in use, CUDA architectures, kernels and schedules."""
    data = collect()
    if as_json:
        print(json.dumps(data))
    else:
        show(data)
    return 0


def collect() -> dict[str, Any]:
    """Everything that `info` shows.

    Raises:
        CommandError: LAZYLLM_CPU_CAPABILITY names an instruction set that is not there.
    """
    import torch

    import lazyllm_ext._C as built

    from .kernels import has_kernel, operators

    with as_input_error(RuntimeError):
        capability = built.cpu_capability()
    return {
        "versions": {
            "lazyllm-ext": lazyllm_ext.__version__,
            "torch": torch.__version__,
            "torch at build": built.torch_version(),
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "cpu_capability": capability,
        "cpu_capability_supported": built.supported_cpu_capability(),
        "cuda_architectures": built.cuda_architectures(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "kernels": {
            name: [key for key in _DISPATCH_KEYS if has_kernel(name, key)] for name in operators()
        },
        "schedules": {name: PruningSchedule.load(name).to_dict() for name in shipped_schedules()},
    }


def show(data: dict[str, Any]) -> None:
    """Print what `collect` found, as tables."""
    console = Console(highlight=False)
    facts = Table(show_header=False)
    for name, value in data["versions"].items():
        facts.add_row(name, value)
    capability, best = data["cpu_capability"], data["cpu_capability_supported"]
    facts.add_row("CPU kernels", capability if capability == best else f"{capability} (of {best})")
    facts.add_row("CUDA architectures", data["cuda_architectures"] or "none: built without CUDA")
    facts.add_row("GPUs", ", ".join(data["gpus"]) or "none")
    console.print(facts)

    kernels = Table(title="registered kernels", title_justify="left")
    kernels.add_column("operator")
    for key in _DISPATCH_KEYS:
        kernels.add_column(key, justify="center")
    for name, keys in data["kernels"].items():
        kernels.add_row(name, *("yes" if key in keys else "–" for key in _DISPATCH_KEYS))
    console.print(kernels)

    schedules = Table(title="shipped schedules", title_justify="left")
    for name in ("schedule", "boundaries (depth: keep)", "window", "pool", "protect_first"):
        schedules.add_column(name)
    for name, schedule in data["schedules"].items():
        boundaries = (": ".join(map(str, entry.values())) for entry in schedule["boundaries"])
        schedules.add_row(
            name,
            ", ".join(boundaries) or "none",
            *(str(schedule[rule]) for rule in ("window", "pool", "protect_first")),
        )
    console.print(schedules)
