"""What LazyLLM has to know of a family of transformers models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, TypeVar

from torch import nn

Value = TypeVar("Value")


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

    Attributes:
        causal_lm, base_model, decoder_layer, attention, mlp, norm, rotary, embedding: the classes.
            `mlp` is the one with gate_proj, up_proj, down_proj and act_fn, if there is one.
            `rotary` is None where positions are learned.
        base: the base model's name in the causal language model.
        embed_name, positions_name, layers_name, final_norm: names in the base model ("": no learned
            positions); its rotary embedding is always called `rotary_emb`.
        attention_name, mlp_name: names in a layer.
        norms: names of a layer's norms: before attention, before the MLP, and of what attention and
            MLP add to the residual; "" for none. "a|b" is a in layers that have it, else b.
            Attention and MLP may share one, and do where the layer has none for the second.
        norm_eps: the attribute of an RMSNorm that holds epsilon. "": the norms are of another kind,
            and are called as they are.
        norm_offset: added to an RMSNorm's weight.
        projections: of queries, keys, values and the output; or, fused, of the first three together
            and of the output.
        fused_groups: configuration -> into how many equal groups of query, key and value heads the
            outputs of a fused projection are divided.
        kv_heads: configuration -> heads of keys and values.
        head_norms: names of the norms of queries and keys, used where the attention has them.
        head_norms_of: what they norm: each "head", all heads together ("all"), or each head after
            it was "rotated".
        output_norm: name of a norm before the attention's output projection; "" for none.
        scale: attention module -> factor on the logits of attention.
        rotates: attention module -> whether its layer has a rotary embedding.
        interleaved: the components that are rotated together are neighbours, not halves.
        partial_rotary: only the first dimensions of a head are rotated.
        window: attention module -> its sliding window in tokens, 0 for full attention.
        parallel: configuration -> whether attention and MLP both read the layer's input.
        attention_softcap: configuration -> soft cap of the attention's logits, None for none.
        embed_scale, residual_scale, logit_scale: configuration -> factor on embeddings (those
            given as inputs_embeds too), on what attention and MLP add, and on the logits.
        refuse: configuration -> why this model cannot be run, None if it can.
    """

    causal_lm: type[nn.Module]
    base_model: type[nn.Module]
    decoder_layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module] | None
    norm: type[nn.Module]
    rotary: type[nn.Module] | None
    embedding: type[nn.Module] = nn.Embedding
    base: str = "model"
    embed_name: str = "embed_tokens"
    positions_name: str = ""
    layers_name: str = "layers"
    final_norm: str = "norm"
    attention_name: str = "self_attn"
    mlp_name: str = "mlp"
    norms: tuple[str, str, str, str] = ("input_layernorm", "post_attention_layernorm", "", "")
    norm_eps: str = "variance_epsilon"
    norm_offset: float = 0.0
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    fused_groups: Callable[[Any], int] | None = None
    kv_heads: Callable[[Any], int] = grouped_heads
    head_norms: tuple[str, ...] = ()
    head_norms_of: Literal["head", "all", "rotated"] = "head"
    output_norm: str = ""
    scale: Callable[[Any], float] = own_scaling
    rotates: Callable[[Any], bool] = always
    interleaved: bool = False
    partial_rotary: bool = False
    window: Callable[[Any], int] = full_attention
    parallel: Callable[[Any], bool] = never
    attention_softcap: Callable[[Any], float | None] = nothing
    embed_scale: Callable[[Any], float] = one
    residual_scale: Callable[[Any], float] = one
    logit_scale: Callable[[Any], float] = one
    refuse: Callable[[Any], str | None] = nothing

    def norm_names(self, layer: Any) -> list[str]:
        """The four names of this layer's norms, "" for what it has not."""
        return [
            next((one for one in name.split("|") if getattr(layer, one or "-", None)), "")
            for name in self.norms
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
        return {name for name in names if getattr(attention, name or "-", None) is not None}

    def attention_children(self, attention: Any) -> set[str]:
        """Names of the modules that this attention module must consist of."""
        return {*self.projections} | self.attention_norms(attention)


def layout(prefix: str, folder: str = "", **fields: Any) -> Callable[[str], Family]:
    """A function that makes the Family of a `config.model_type`, when it is called with that.

    Args:
        prefix: of the family's classes: <prefix>ForCausalLM, <prefix>Model, <prefix>DecoderLayer,
            <prefix>Attention, <prefix>MLP, <prefix>RMSNorm, <prefix>RotaryEmbedding.
        folder: in transformers.models, where it is not called as the type is.
        fields: of the Family. A class that is called otherwise is given by its name.
    """
    return partial(_described, prefix, folder, fields)


_CLASSES = {
    "causal_lm": "ForCausalLM",
    "base_model": "Model",
    "decoder_layer": "DecoderLayer",
    "attention": "Attention",
    "mlp": "MLP",
    "norm": "RMSNorm",
    "rotary": "RotaryEmbedding",
}


def _described(prefix: str, folder: str, fields: dict[str, Any], kind: str) -> Family:
    folder = folder or kind
    module = import_module(f"transformers.models.{folder}.modeling_{folder}")
    described: dict[str, Any] = {
        field: getattr(module, prefix + suffix, None) for field, suffix in _CLASSES.items()
    }
    for field, value in fields.items():
        named = isinstance(value, str) and (field in _CLASSES or field == "embedding")
        described[field] = getattr(module, value) if named else value
    return Family(**described)
