"""What LazyLLM has to know of a family of transformers models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

from torch import nn

Value = TypeVar("Value")
OfConfig = Callable[[Any], Value]  # read off the language model's configuration
# Read where transformers' forward reads it, so that a change of it is seen: off a module, …
OfModel = Callable[[Any], Value]  # the causal language model
OfBase = Callable[[Any], Value]  # the base model
OfLayer = Callable[[Any], Value]
OfAttention = Callable[[Any], Value]  # a layer's attention module


def constant(value: Value) -> Callable[[Any], Value]:
    """The same, whatever the configuration or the module."""
    return lambda of: value


always, never = constant(True), constant(False)
full_attention, one, nothing = constant(0), constant(1.0), constant(None)


def window_of_layer(attention: Any) -> int:
    """transformers' attention module knows whether its own layer slides; 0: full attention."""
    return getattr(attention, "sliding_window", None) or 0


def window_of_model(attention: Any) -> int:
    """The configuration's window, the same in all layers; 0: full attention."""
    return attention.config.sliding_window or 0


def window_of_type(attention: Any) -> int:
    """The configuration's window in the layers that `layer_types` names so; 0 in the others."""
    config = attention.config
    slides = config.layer_types[attention.layer_idx] == "sliding_attention"
    return config.sliding_window or 0 if slides else 0


def all_heads(config: Any) -> int:
    """As many heads of keys and values as of queries."""
    heads: int = config.num_attention_heads
    return heads


def grouped_heads(config: Any) -> int:
    """Heads of keys and values, as many as of queries where the configuration names none."""
    return getattr(config, "num_key_value_heads", None) or all_heads(config)


def own_scaling(attention: Any) -> float:
    """What transformers' attention module multiplies its logits by."""
    scaling: float = attention.scaling
    return scaling


@dataclass(frozen=True)
class Family:
    """Where the parts of a model's layers are, and what their classes must be.

    The decoder does its own norms, rotary embeddings and attention, and calls the model's own
    projections and MLP. So the classes of what it replaces must be exactly these, and hold exactly
    the children named here; what is called may be anything (LoRA, quantized linears, …).
    """

    # The classes.
    causal_lm: type[nn.Module]
    base_model: type[nn.Module]
    decoder_layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module] | None  # with gate_proj, up_proj, down_proj and act_fn, if there is one
    norm: type[nn.Module]
    rotary: type[nn.Module] | None  # None where positions are learned
    embedding: type[nn.Module] = nn.Embedding
    # The base model's name in the causal language model.
    base: str = "model"
    # Names in the base model; its rotary embedding is always called `rotary_emb`.
    embed_name: str = "embed_tokens"
    positions_name: str = ""  # "": no learned positions
    layers_name: str = "layers"
    final_norm: str = "norm"
    # Names in a layer.
    attention_name: str = "self_attn"
    mlp_name: str = "mlp"
    # A layer's norms: before attention, before the MLP, and of what attention and MLP add to the
    # residual; "" for none. "a|b" is a in layers that have it, else b. Attention and MLP may share
    # one, and do where the layer has none for the second.
    norms: tuple[str, str, str, str] = ("input_layernorm", "post_attention_layernorm", "", "")
    # The attribute of an RMSNorm that holds epsilon. "": the norms are of another kind, and are
    # called as they are.
    norm_eps: str = "variance_epsilon"
    norm_offset: float = 0.0  # added to an RMSNorm's weight
    # Of queries, keys, values and the output; or, fused, of the first three together and of the
    # output.
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    # Into how many equal groups of query, key and value heads a fused projection's outputs divide.
    fused_groups: OfConfig[int] | None = None
    kv_heads: OfConfig[int] = grouped_heads
    # The norms of queries and keys, used where the attention has them; of each "head", of "all"
    # heads together, or of each head after it was "rotated".
    head_norms: tuple[str, ...] = ()
    head_norms_of: Literal["head", "all", "rotated"] = "head"
    output_norm: str = ""  # before the attention's output projection
    scale: OfAttention[float] = own_scaling  # factor on the logits of attention
    rotates: OfAttention[bool] = always  # whether the layer has a rotary embedding
    interleaved: bool = False  # the components that are rotated together are neighbours, not halves
    partial_rotary: bool = False  # only the first dimensions of a head are rotated
    window: OfAttention[int] = full_attention  # sliding window in tokens, 0 for full attention
    parallel: OfLayer[bool] = never  # whether attention and MLP both read the layer's input
    attention_softcap: OfAttention[float | None] = nothing  # of the attention's logits
    # Factors on embeddings (those given as inputs_embeds too), on what attention and MLP add, and
    # on the logits.
    embed_scale: OfBase[float] = one
    residual_scale: OfLayer[float] = one
    logit_scale: OfModel[float] = one
    refuse: OfBase[str | None] = nothing  # why this model cannot be run, None if it can

    def norm_names(self, layer: Any) -> list[str]:
        """The four names of this layer's norms, "" for what it has not."""
        return [
            next((one for one in name.split("|") if _has(layer, one)), "") for name in self.norms
        ]

    def layer_norms(self, layer: Any) -> set[str]:
        """Names of the norms that this layer has."""
        return {*self.norm_names(layer)} - {""}

    def base_children(self) -> set[str]:
        """Names of the modules that the base model must consist of."""
        names = {self.embed_name, self.positions_name, self.layers_name, self.final_norm}
        return (names if self.rotary is None else {*names, "rotary_emb"}) - {""}

    def attention_norms(self, attention: Any) -> set[str]:
        """Names of the norms that this attention module has."""
        names = (*self.head_norms, self.output_norm)
        return {name for name in names if _has(attention, name)}

    def attention_children(self, attention: Any) -> set[str]:
        """Names of the modules that this attention module must consist of."""
        return {*self.projections} | self.attention_norms(attention)


def _has(owner: Any, name: str) -> bool:
    # Not its truth value: a compiled module has none.
    return getattr(owner, name or "-", None) is not None


_CLASSES = {
    "causal_lm": "ForCausalLM",
    "base_model": "Model",
    "decoder_layer": "DecoderLayer",
    "attention": "Attention",
    "mlp": "MLP",
    "norm": "RMSNorm",
    "rotary": "RotaryEmbedding",
}


def layout(prefix: str, folder: str = "", **fields: Any) -> Callable[[str], Family]:
    """A function that makes the Family of a `config.model_type`, when it is called with that.

    Args:
        prefix: of the family's classes: <prefix>ForCausalLM, <prefix>Model, <prefix>DecoderLayer,
            <prefix>Attention, <prefix>MLP, <prefix>RMSNorm, <prefix>RotaryEmbedding.
        folder: in transformers.models, where it is not called as the type is.
        fields: of the Family. A class that is called otherwise is given by its name.
    """

    def describe(kind: str) -> Family:
        name = folder or kind
        module = import_module(f"transformers.models.{name}.modeling_{name}")
        described: dict[str, Any] = {
            field: getattr(module, prefix + suffix, None) for field, suffix in _CLASSES.items()
        }
        for field, value in fields.items():
            named = isinstance(value, str) and (field in _CLASSES or field == "embedding")
            described[field] = getattr(module, value) if named else value
        return Family(**described)

    return describe
