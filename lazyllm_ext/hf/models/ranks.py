"""Tensor parallelism: each process computes its own heads, and all keep the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from lazyllm_ext.errors import NotSupportedError, refusal

from .parts import Language, head_dim, parts_of
from .versions import tensor_parallel_group

# transformers' plan for projections of queries, keys, values and the output, divided by heads.
_BY_HEADS = ("colwise", "colwise", "colwise", "rowwise")


@dataclass(frozen=True)
class Ranks:
    """The processes that each have a part of a model's heads, and all of its hidden states."""

    count: int
    group: Any  # their process group
    over_heads: str  # of the schedule, "mean" or "max"

    def __call__(self, scored: Tensor) -> Tensor:
        """Scores [K] float32 over this process's heads -> over all heads, the same bits everywhere.

        A sum that all processes get is the same on all of them, whatever order it was taken in. So
        all select the same tokens.
        """
        if self.over_heads == "max":
            dist.all_reduce(scored, dist.ReduceOp.MAX, self.group)
            return scored
        dist.all_reduce(scored, dist.ReduceOp.SUM, self.group)
        return scored / self.count


def count_ranks(model: Any) -> int:
    """How many processes the heads of a model are divided over; 1: it is whole."""
    return getattr(model, "_tp_size", None) or 1


def ranks_of(model: Any, over_heads: str) -> Ranks | None:
    """The processes of a model that `check_ranks` let pass; None where it is whole."""
    count = count_ranks(model)
    if count == 1:
        return None
    return Ranks(count, tensor_parallel_group(model._device_mesh), over_heads)


def refuse_ranks(model: Any, what: str) -> None:
    """NotSupportedError for a model that is divided over processes; `what` needs it whole."""
    count = count_ranks(model)
    if count > 1:
        raise refusal(what, "a model in one process", f"one over {count} tensor-parallel ones")


def check_ranks(model: Any, language: Language) -> None:
    """NotSupportedError for a model that is sharded in another way than by whole heads.

    Supported is transformers' own tensor parallelism (`from_pretrained(…, tp_plan="auto")`) with
    queries, keys and values in projections of their own.
    """
    count, mesh = count_ranks(model), getattr(model, "_device_mesh", None)
    processes = 1 if mesh is None else mesh.size()
    others = mesh is None and any(hasattr(weight, "placements") for weight in model.parameters())
    if processes != count or others:
        got = "another sharding" if mesh is None else f"{processes} processes for {count}"
        raise refusal(
            "model",
            "whole weights, or the tensor parallelism of transformers' tp_plan alone",
            got,
        )
    if count == 1:
        return
    family, config = language.family, language.config
    where = f"model: tensor parallelism over {count} processes"
    if not language.whole:
        raise refusal(where, "a language model by itself", "one that sees images")
    if getattr(config, "quantization_config", None) is not None:
        raise refusal(where, "weights that are not quantized", "quantized ones")
    attention = parts_of(language).attentions[0]
    for name in sorted(family.attention_norms(attention)):
        weight = getattr(getattr(attention, name), "weight", None)
        if weight is not None and weight.numel() != head_dim(attention):
            raise NotSupportedError(f"{where}: {name}: a norm over several heads is not supported")
    layers = f"{family.base}.{family.layers_name}.*.{family.attention_name}"
    styles = tuple(model._tp_plan.get(f"{layers}.{name}") for name in family.projections)
    if styles != _BY_HEADS:
        got = ", ".join(f"{n} {s}" for n, s in zip(family.projections, styles, strict=True))
        raise refusal(
            where,
            "projections of queries, keys, values and output that are divided by heads "
            f"({', '.join(_BY_HEADS)})",
            got,
        )
    for name in family.projections:
        if type(getattr(attention, name)) is not nn.Linear:
            raise refusal(f"{where}: {name}", "Linear", "an adapter or another class")
    for name, heads in (
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", family.kv_heads(config)),
    ):
        if heads % count:
            raise refusal(f"{where}: config.{name}", f"a multiple of {count}", heads)
