"""A model becomes one file, which needs torch and the operator library and nothing else."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.files import other_than_file, replacing
from lazyllm_ext.schedule import PruningSchedule
from lazyllm_ext.version import __version__

from . import jit
from .checksums import add_checksums
from .description import COMPILED, DESCRIPTION, SCHEDULE, TOKENIZER, Description, weights_sha256
from .program import Program
from .tokenizer import check_tokenizer, tokenizer_json

Say = Callable[[str], None]

# More than the code and the alignment of a file take.
_CODE_BYTES = 16 << 20


def torchscript(
    model: Any,
    schedule: Any,
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    say: Say = lambda stage: None,
) -> Description:
    """Write a model, its schedule and its tokenizer as one TorchScript file.

    The file holds a scripted `Program`: prompts of any length, decoding, further turns and revival,
    in the same loop as `lazyllm_ext.apply`. It runs on the device and in the dtype of the model,
    which is left as it is.

    Args:
        model: a causal language model of a supported family, in inference mode, of plain weights.
        schedule: anything that `PruningSchedule.load` takes.
        path: of the file; replaced if it exists, once the new one is complete.
        tokenizer: a fast tokenizer of transformers, or the path of a tokenizer.json; goes into the
            file. None for none.
        say: is told what is being done, in a few words.

    Returns:
        What stands in the file as `lazyllm.json`.

    Raises:
        TypeError: `model` is not a transformers model.
        ValueError: a model, module, schedule, tokenizer or path that cannot be exported, and why.
    """
    path, schedule, decoder = _prepare(model, schedule, path, say)
    description, files = _describe("torchscript", model, schedule, decoder, tokenizer)
    program = Program(
        decoder, description.vocab_size, description.max_tokens, description.eos_token_ids
    )
    _write(program, path, files, say)
    return description


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
    path, schedule, decoder = _prepare(model, schedule, path, say)
    if decoder.boundaries and not decoder.bounded:
        raise ValueError(
            "schedule: expected max_revive, a bound of revived tokens per step, since the compiled "
            "step has fixed shapes; got none"
        )
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    description, files = _describe("aoti", model, schedule, decoder, tokenizer)
    from .compiled import compile_step, trace  # seconds, which no refusal need take

    say("tracing the decoding step")
    exported = trace(decoder, max_tokens)
    say("compiling the decoding step")
    package = compile_step(exported)
    program = Program(
        decoder,
        description.vocab_size,
        description.max_tokens,
        description.eos_token_ids,
        max_tokens,
    )
    _write(program, path, {**files, COMPILED: package}, say)
    return description


def _prepare(
    model: Any, schedule: Any, path: str | os.PathLike[str], say: Say
) -> tuple[Path, PruningSchedule, LazyDecoder]:
    """The arguments of an export, checked, and the decoder that is exported."""
    path = Path(path)
    try:
        kind = other_than_file(path)
    except OSError as error:
        raise ValueError(f"path: cannot write {path}: {error.strerror}") from error
    if kind is not None:
        raise ValueError(f"path: expected a file, got {kind}: {path}")
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(f"path: no such folder: {target.parent}")
    weights = {id(p): p.nbytes for p in getattr(model, "parameters", list)()}
    _check_room(target, sum(weights.values()))
    say("describing the model")
    schedule = PruningSchedule.load(schedule)
    return target, schedule, detached(LazyDecoder.from_model(model, schedule, export=True))


def _write(program: Program, path: Path, files: dict[str, Any], say: Say) -> None:
    """Script the program and write it, with these files (text or bytes) in it."""
    say("compiling the program")
    scripted = jit.script(program)
    say("writing")
    tensors = [*program.parameters(), *program.buffers()]
    _check_room(path, sum(each.nbytes for each in tensors) + sum(map(len, files.values())))
    try:
        with replacing(path) as scratch:
            jit.save(scripted, os.fspath(scratch), files)
            add_checksums(scratch)
    except OSError as error:
        raise ValueError(f"path: cannot write {path}: {error.strerror}") from error


def detached(decoder: LazyDecoder) -> LazyDecoder:
    """The same decoder with parameters that need no gradient, and share the model's memory."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in decoder.parameters()}
    return copy.deepcopy(decoder, shared)


def _describe(
    kind: str, model: Any, schedule: PruningSchedule, decoder: LazyDecoder, tokenizer: Any
) -> tuple[Description, dict[str, str]]:
    """The description of an export, and the text files that go into it, by name."""
    config, weight = model.config, model.get_input_embeddings().weight
    text = None if tokenizer is None else tokenizer_json(tokenizer)
    vocabulary = None if text is None else check_tokenizer(text, weight.size(0))
    generation = getattr(model, "generation_config", None)
    eos = getattr(config if generation is None else generation, "eos_token_id", None)
    description = Description(
        kind=kind,
        lazyllm_ext=__version__,
        torch=torch.__version__,
        transformers=transformers.__version__,
        model_type=config.model_type,
        model_name=os.path.basename(str(getattr(config, "name_or_path", "")).rstrip("/")),
        model_sha256=weights_sha256(model),
        dtype=str(weight.dtype).removeprefix("torch."),
        device=weight.device.type,
        vocab_size=weight.size(0),
        max_tokens=getattr(config, "max_position_embeddings", None) or 0,
        eos_token_ids=[] if eos is None else [eos] if isinstance(eos, int) else [*map(int, eos)],
        num_layers=decoder.num_layers,
        boundary_layers=[
            layer for layer, boundary in enumerate(decoder.boundary_at) if boundary >= 0
        ],
        vocabulary_sha256=vocabulary,
    )
    used = schedule.for_model(getattr(config, "name_or_path", None))
    files = {DESCRIPTION: description.to_json(), SCHEDULE: used.to_json()}
    if text is not None:
        files[TOKENIZER] = text
    return description, files


def _check_room(path: Path, nbytes: int) -> None:
    """Whether a file with so many bytes of weights and other files can be written beside `path`.

    Asked first, since torch's writer (2.13) ends the process where there is no room.

    Raises:
        ValueError: the disk, a quota or the folder's permissions do not allow it.
    """
    try:
        with tempfile.TemporaryFile(prefix=".export-", dir=path.parent) as file:
            os.posix_fallocate(file.fileno(), 0, nbytes + nbytes // 100 + _CODE_BYTES)
    except OSError as error:
        raise ValueError(
            f"path: cannot write {nbytes / 1e6:.0f} MB to {path}: {error.strerror}"
        ) from error
