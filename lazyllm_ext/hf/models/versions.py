"""What differs between the supported versions of transformers; nothing else asks for a version."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

# What a cache is called in arguments and outputs: `cache` since 5.24.
CACHE_NAME = (
    "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
)

# Options of generation that some versions lack, and that LazyLLM refuses where they are.
OPTIONS_OF_SOME = ("use_mtp", "speculation_type")


def columns_cropped(given: int, columns: int) -> int:
    """How many of a cache's columns its `crop(given)` removes.

    `given` is minus that number, or, as versions before 5.23 have it, how many columns stay.
    """
    return max(columns - given, 0) if given > 0 else -given


def tensor_parallel_group(mesh: Any) -> Any:
    """The process group of a model's tensor parallelism: early versions have no other dimension."""
    return mesh.get_group("tp" if mesh.ndim > 1 else 0)


def only_sums_gradients(module: nn.Module) -> bool:
    """Whether a module's forward was replaced for tensor-parallel training alone.

    Early versions have a backward hook there instead.
    """
    forward = module.__dict__.get("forward")
    return getattr(forward, "__qualname__", "").startswith("ReplicatedWithGradAllReduce.")
