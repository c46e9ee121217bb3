"""A computed prefill in a file: what was read once answers questions in other processes too."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.json_input import decode, wrong
from lazyllm_ext.state import from_tensors, to_tensors

from .cache import LazyCache
from .plan import Plan
from .tensor_file import TensorFile, write_tensors

_FORMAT = "lazyllm-ext prefill 2"
_WITHOUT_CHECKSUMS = "lazyllm-ext prefill 1"  # what is as now but for these
_ADAPTERS = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")  # PEFT's names
_OF_COLUMNS = {"absent": torch.bool, "document": torch.int64}  # of a cache, where it has them
_SAMPLES = 4096  # elements of a parameter that its fingerprint reads


def model_fingerprint(model: Any, decoder: LazyDecoder) -> str:
    """32 hexadecimal digits that tell models apart: modules, adapters that are on, and weights.

    Of each parameter and buffer up to 4,096 evenly spaced elements are read, so that it takes
    moments. A change of a few single weights can go unnoticed, training or merging cannot.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    # Classes, activations and epsilons; what a configuration alone holds; adapters that are on.
    digest.update(repr(model).encode())
    digest.update(repr(getattr(model.config, "num_experts_per_tok", None)).encode())
    for module in model.modules():
        digest.update(repr([getattr(module, name, None) for name in _ADAPTERS]).encode())
    for layer in decoder.layers:
        fields = ("scale", "window", "softcap", "rope", "parallel", "residual_scale")
        digest.update(repr([getattr(layer, field) for field in fields]).encode())
    digest.update(repr([decoder.embed_scale, decoder.logit_scale]).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)]
        digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def save(cache: LazyCache, model: str, path: str | os.PathLike[str]) -> None:
    """Write a cache to a safetensors file.

    Raises:
        ValueError: the cache is empty or not complete, or another thread is using it.
        OSError: the file cannot be written.
    """
    with cache.owned():  # until all is written: what is written is its memory
        cache.check_usable()
        if cache.state is None:
            raise ValueError("cache: expected a cache that has been used, got an empty one")
        tensors = to_tensors(cache.state, cache.plan.spec)
        for name in _OF_COLUMNS:
            tensor: Tensor | None = getattr(cache, name)
            if tensor is not None:
                tensors[name] = tensor.contiguous()
        metadata = {
            "format": _FORMAT,
            "model": model,
            "schedule": json.dumps(_rules(cache.plan)),
            "columns": str(cache.columns),
        }
        try:
            write_tensors(path, tensors, metadata)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"path: cannot write {os.fspath(path)}: {reason}") from error


def load(
    path: str | os.PathLike[str], plan: Plan, model: str, dtype: torch.dtype, device: torch.device
) -> LazyCache:
    """The cache that `save` wrote, in memory of its own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file of `save`, a damaged one, or one of another model, schedule or dtype.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"path: expected a saved prefill, got no file: {os.fspath(path)}")
    where = f"path: {os.fspath(path)}"
    with open(path, "rb") as opened:
        try:
            file = TensorFile(opened)
        except ValueError as error:
            raise _damaged(where, f" or another file: {error}") from error
        _check_metadata(where, file, plan, model)
        try:
            tensors = file.read(device)
        except ValueError as error:
            raise _damaged(where, f": {error}") from error
    cache = LazyCache(plan)
    for name in _OF_COLUMNS:
        setattr(cache, name, tensors.pop(name, None))
    try:
        cache.state = from_tensors(plan.spec, tensors)
        cache.columns = _columns(file.metadata["columns"])
        _check_columns(cache, cache.state.host_length)
    except (ValueError, IndexError, RuntimeError, TypeError) as error:
        raise _damaged(where, f": {error}") from error
    got = cache.state.keys[0].dtype
    if got != dtype:
        raise ValueError(f"{where}: expected {dtype}, got {got}")
    return cache


def _damaged(where: str, why: str = "") -> ValueError:
    return ValueError(f"{where}: expected a saved prefill, got a damaged one{why}")


def _columns(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise wrong("columns", "a number below 10^18", text)
    return int(text)


def _check_columns(cache: LazyCache, lengths: list[int]) -> None:
    """What is said of columns is of this batch, and each sequence has as many tokens as they show.

    Raises:
        ValueError: it is not so.
    """
    for name, kind in _OF_COLUMNS.items():
        tensor: Tensor | None = getattr(cache, name)
        if tensor is None:
            continue
        is_table = tensor.dtype == kind and tensor.dim() == 2 and tensor.size(0) == len(lengths)
        if not is_table or tensor.size(1) > cache.columns:
            raise ValueError(
                f"{name}: expected {kind} of shape [{len(lengths)}, {cache.columns} or fewer], "
                f"got {tensor.dtype} of shape {list(tensor.shape)}"
            )
    without = [0] * len(lengths) if cache.absent is None else cache.absent.sum(dim=1).tolist()
    for sequence, (length, absent) in enumerate(zip(lengths, without, strict=True)):
        if length + absent != cache.columns:
            raise ValueError(
                f"columns: expected {length + absent}, {length} tokens of sequence {sequence} and "
                f"{absent} columns without, got {cache.columns}"
            )


def _rules(plan: Plan) -> dict[str, Any]:
    """What of a schedule decides what is computed."""
    rules = plan.schedule.to_dict()
    rules.pop("name", None)
    rules.pop("models", None)
    return {**rules, "layers": list(plan.boundary_layers)}


def _check_metadata(where: str, file: TensorFile, plan: Plan, model: str) -> None:
    metadata = file.metadata
    if metadata.get("format") not in (_FORMAT, _WITHOUT_CHECKSUMS):
        raise ValueError(f"{where}: expected a saved prefill ({_FORMAT!r}), got another file")
    missing = {"model", "schedule", "columns"} - metadata.keys()
    if metadata["format"] == _FORMAT and not file.has_checksums:
        missing.add("checksums")
    if missing:
        raise _damaged(where, f": expected the fields of one, got no {', '.join(sorted(missing))}")
    if metadata["model"] != model:
        raise ValueError(
            f"{where}: expected a prefill of this model ({model}), got one of another model or of "
            f"other weights ({metadata['model']})"
        )
    try:
        got = decode(metadata["schedule"], "schedule")
        if not isinstance(got, dict):
            raise wrong("schedule", "a JSON object", got)
    except ValueError as error:
        raise _damaged(where, f": {error}") from error
    expected = json.loads(json.dumps(_rules(plan)))
    if got != expected:
        different = [
            name
            for name in {**expected, **got}
            if (name in got, got.get(name)) != (name in expected, expected.get(name))
        ]
        raise ValueError(
            f"{where}: expected a prefill under the schedule that is applied or given, got one "
            f"under a schedule with other {', '.join(different)}"
        )
