"""What LazyLLM has to know of a family of transformers models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


def full_attention(attention: Any) -> int:
    """No sliding window in any layer."""
    return 0


def window_of_layer(attention: Any) -> int:
    """transformers' attention module knows whether its own layer slides; 0: full attention."""
    return getattr(attention, "sliding_window", None) or 0


def nothing_to_refuse(config: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """Where the parts of a model's layers are, and what their classes must be.

    The decoder does its own norms, rotary embeddings and attention, and calls the model's own
    projections and MLP. So the classes of what it replaces must be exactly these, and hold exactly
    the children named here; what is called may be anything (LoRA, quantized linears, …).

    Attributes:
        causal_lm, base_model, decoder_layer, attention, mlp, norm, rotary, embedding: the classes.
        norms: names of a layer's norms: before attention, before the MLP, and, where there are any,
            of what attention and MLP add to the residual.
        head_norms: whether `q_norm` and `k_norm` norm every head.
        norm_eps: the norm's attribute that holds epsilon.
        norm_offset: added to the norm's weight.
        window: attention module -> its sliding window in tokens, 0 for full attention.
        rope_per_layer_type: rotary embeddings differ by `attention.layer_type`.
        refuse: config -> why this model cannot be run, None if it can.
    """

    causal_lm: type[nn.Module]
    base_model: type[nn.Module]
    decoder_layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]
    embedding: type[nn.Module] = nn.Embedding
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_norms: bool = False
    norm_eps: str = "variance_epsilon"
    norm_offset: float = 0.0
    window: Callable[[Any], int] = full_attention
    rope_per_layer_type: bool = False
    refuse: Callable[[Any], str | None] = nothing_to_refuse

    @property
    def attention_children(self) -> set[str]:
        projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
        return projections | {"q_norm", "k_norm"} if self.head_norms else projections
