"""Where the time of a prefill goes, from the profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lazyllm_ext import Lazy
from lazyllm_ext.lab.tools.clock import Clock

from .model import Model, TimedGeneration

_LINEAR = "lazyllm_ext.lab.bench: projections and MLP"

# What is shown -> the profiler's names for it. No range holds another one of this table.
_RANGES = {
    "projections_mlp": (_LINEAR,),
    "attention": ("lazyllm::lazy_attention", "aten::scaled_dot_product_attention"),
    "scoring": ("lazyllm::token_importance",),
    "selection": ("lazyllm::select_tokens",),
}
PARTS = (*_RANGES, "rest")


def profile_prefill(
    model: Model, contender: str, ids: Tensor
) -> tuple[dict[str, float], TimedGeneration]:
    """Seconds of every part of one prefill of [n] ids, up to its first token, and that run.

    `rest` is what the others leave of the whole: norms, activations between, rotary embedding,
    caches, bookkeeping, Python. On a GPU a part's seconds are those of its kernels, and `rest`
    holds what the GPU waited for.
    """
    gpu = model.device != "cpu"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if gpu else []

    def marked(lazy: Lazy | None) -> AbstractContextManager[None]:
        return _marked(_projections(model.model if lazy is None else lazy.decoder))

    with torch.profiler.profile(activities=kinds) as profile:
        clock = Clock()
        run = model.generate(contender, ids, 1, around=marked)
        model.synchronize()
        total = clock()
    spent: dict[str, float] = {}
    for event in profile.key_averages():
        took = event.device_time_total if gpu else event.cpu_time_total
        # A GPU's profile names a range twice: where it was started, and where it ran.
        spent[event.key] = max(spent.get(event.key, 0.0), took * 1e-6)
    parts = {part: sum(spent.get(name, 0.0) for name in names) for part, names in _RANGES.items()}
    return {**parts, "rest": max(0.0, total - sum(parts.values()))}, run


def shares(row: dict[str, Any]) -> dict[str, float]:
    """Parts of a profiled row, as parts of one."""
    total = sum(row["parts_s"].values())
    return {part: row["parts_s"][part] / total for part in PARTS}


def _projections(model: nn.Module) -> list[nn.Module]:
    """The projections, MLPs and the output layer of a transformers model, or of a LazyDecoder.

    They have the same names in both. A decoder's are those around the model's own, never the ones
    within: a hook on one of the model's would make the decoder call it where it otherwise takes a
    faster way.
    """
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp", "lm_head")
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        path = name.split(".")
        within = any(".".join(path[:depth]) in found for depth in range(1, len(path)))
        if path[-1] in names and not within:
            found[name] = module
    return list(found.values())


@contextmanager
def _marked(modules: list[nn.Module]) -> Iterator[None]:
    """A range of the profiler around every call of these modules."""
    running: list[Any] = []

    def before(module: nn.Module, arguments: Any) -> None:
        running.append(torch.profiler.record_function(_LINEAR))
        running[-1].__enter__()

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(before) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
