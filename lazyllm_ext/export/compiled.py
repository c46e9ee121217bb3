"""The decoding step as an AOTInductor package, inside a TorchScript file that does the rest."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from lazyllm_ext.decoder import LazyDecoder

from .description import COMPILED, Description
from .jit import sentence_of
from .program import Program, Step
from .script import Say, describe, prepare, write

# Slots of the stores while tracing; their number is free.
_TRACED_SLOTS = 4096


def aoti(
    model: Any,
    schedule: Any,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    max_tokens: int = 4096,
    say: Say = lambda stage: None,
) -> Description:
    """Write a model as `torchscript` does, with its decoding step compiled by AOTInductor.

    The TorchScript `Program` reads prompts and further turns, whose shapes depend on the data. The
    decoding step has fixed shapes when revival is bounded: it is traced from the same loop by
    torch.export and compiled for this machine's kind of processor. It goes into the file as
    `decode.pt2`, without weights: it uses those of the program.

    Args:
        model, schedule, path, tokenizer, say: as of `torchscript`. The schedule bounds revival,
            with `max_revive`, unless it has no boundary.
        max_tokens: longest context of the compiled step, in tokens; past it the program decodes.

    Raises:
        TypeError, ValueError: as `torchscript`; and for a schedule without `max_revive`, or where
            there is no C++ compiler.
    """
    path, schedule, decoder = prepare(model, schedule, path, say)
    if decoder.boundaries and not decoder.bounded:
        raise ValueError(
            "schedule: expected max_revive, a bound of revived tokens per step, since the compiled "
            "step has fixed shapes; got none"
        )
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    description, files = describe("aoti", model, schedule, decoder, tokenizer)
    say("tracing the decoding step")
    exported = trace(decoder, max_tokens)
    say("compiling the decoding step")
    package = _compiled(exported)
    program = Program(
        decoder,
        description.vocab_size,
        description.max_tokens,
        description.eos_token_ids,
        max_tokens,
    )
    write(program, path, {**files, COMPILED: package}, say)
    return description


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
            Step(decoder).eval(), (ids, tensors), dynamic_shapes=(None, free), strict=False
        )


def _compiled(exported: torch.export.ExportedProgram) -> bytes:
    options = {
        "aot_inductor.package_constants_in_so": False,
        # Spares 40 of 130 seconds with 30 layers: the wrapper only calls one kernel after another,
        # and headers that are compiled beforehand serve the next export at best.
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = os.path.join(folder, COMPILED)
        try:
            torch._inductor.aoti_compile_and_package(
                exported, package_path=file, inductor_configs=options
            )
        except (RuntimeError, OSError) as error:  # no compiler or no room for it, mostly
            raise ValueError(
                f"export: the decoding step does not compile: {sentence_of(error)}"
            ) from error
        return Path(file).read_bytes()
