"""The road of torch.export: the decoding step traced, compiled by AOTInductor, and loaded again."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._inductor
from torch.export import Dim

from lazyllm_ext.decoder import LazyDecoder

from .description import COMPILED
from .jit import sentence_of
from .program import Program
from .step import DecodingStep

# Slots of the stores while tracing; their number is free.
_TRACED_SLOTS = 4096
# What AOTInductor is told.
_OPTIONS = {
    "aot_inductor.package_constants_in_so": False,
    # Spares 40 of 130 seconds with 30 layers: the wrapper only calls one kernel after another, and
    # headers that are compiled beforehand serve the next export at best.
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,
}


def trace(decoder: LazyDecoder, columns: int) -> torch.export.ExportedProgram:
    """The decoding step of one sequence, for contexts of up to `columns` tokens."""
    program = Program(decoder, 1, columns=columns)
    with torch.no_grad():
        tensors = program.begin_step()
        for stage in (0, 1, 3):  # keys, values, waiting hidden states
            tensors[stage] = [
                store.new_zeros(_TRACED_SLOTS, *store.shape[1:]) for store in tensors[stage]
            ]
        free = [
            [{0: Dim.AUTO} if place in (0, 1, 3) else None for _ in group]
            for place, group in enumerate(tensors)
        ]
        ids = torch.zeros([1], dtype=torch.int64, device=program.state.length.device)
        return torch.export.export(
            DecodingStep(decoder).eval(), (ids, tensors), dynamic_shapes=(None, free), strict=False
        )


def compile_step(exported: torch.export.ExportedProgram) -> bytes:
    """The step as a package of AOTInductor, without weights.

    Raises:
        ValueError: there is no C++ compiler, or no room for what it writes.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / COMPILED
        try:
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(file), inductor_configs=_OPTIONS
            )
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"export: the decoding step does not compile: {sentence_of(error)}"
            ) from error
        return file.read_bytes()


def load_step(package: bytes, program: Any) -> Any:
    """What `compile_step` gave, on the weights of a program: ids and its state -> logits."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / COMPILED
        file.write_bytes(package)
        step = torch._inductor.aoti_load_package(str(file))
    weights = dict(program.named_parameters(remove_duplicate=False))
    weights.update(program.named_buffers())
    used = {name: weights[name] for name in step.get_constant_fqns()}
    step.load_constants(used, check_full_update=True, user_managed=True)
    return step
