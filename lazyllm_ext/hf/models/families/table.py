"""The families, by `config.model_type`.

Every entry was read off the model's `modeling_*.py` in transformers, and tests hold each against
its own transformers model. docs/adding-a-family.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import nn

from .family import (
    Family,
    all_heads,
    always,
    constant,
    layout,
    window_of_layer,
    window_of_model,
    window_of_type,
)


def _no(option: str, why: str) -> Callable[[Any], str | None]:
    """Refuses configurations in which an option is on."""

    def refuse(base: Any) -> str | None:
        value = getattr(base.config, option, None)
        return f"config.{option}={value!r} is not supported: {why}" if value else None

    return refuse


def _no_bias(base: Any) -> str | None:
    if base.use_alibi or base.config.alibi:
        return "alibi: attention biased by distance (ALiBi) is not supported"
    return None


def _no_query_scale(base: Any) -> str | None:
    if base.config.rope_parameters.get("llama_4_scaling_beta"):
        return "llama_4_scaling_beta: queries scaled by position are not supported"
    return None


def _query_groups(config: Any) -> int:
    """One for all heads, or one for each."""
    return 1 if config.multi_query else all_heads(config)


def _falcon_groups(config: Any) -> int:
    """How many groups of queries, a key and a value there are."""
    if config.new_decoder_architecture:
        groups: int = config.num_kv_heads
        return groups
    return _query_groups(config)


_BIDIRECTIONAL = _no("use_bidirectional_attention", "attention to later tokens")
_CLIPPED = _no("clip_qkv", "clipped queries, keys and values")

_SANDWICH = (
    "input_layernorm",
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
)
_AFTER = ("", "", "post_attention_layernorm", "post_feedforward_layernorm")
_SHARED_NORM = ("input_layernorm", "input_layernorm", "", "")
_HEADS: dict[str, Any] = {"head_norms": ("q_norm", "k_norm")}
_ALL_HEADS: dict[str, Any] = {**_HEADS, "head_norms_of": "all"}
_LATE_HEADS: dict[str, Any] = {
    "head_norms": ("query_layernorm", "key_layernorm"),
    "head_norms_of": "rotated",
}
# Norms that are no RMSNorm are the model's own modules.
_LAYER_NORM: dict[str, Any] = {"norm": nn.LayerNorm, "norm_eps": ""}
_GEMMA: dict[str, Any] = {"norm_eps": "eps", "norm_offset": 1.0}
_GRANITE: dict[str, Any] = {
    "embed_scale": attrgetter("embedding_multiplier"),
    "residual_scale": attrgetter("residual_multiplier"),
    "logit_scale": lambda model: 1.0 / model.config.logits_scaling,
}
_COHERE: dict[str, Any] = {
    "norms": _SHARED_NORM,
    "norm_eps": "",
    "parallel": always,
    "interleaved": True,
    "logit_scale": attrgetter("logit_scale"),
}
# One projection, in which the query, key and value of each head stand together.
_QUERY_KEY_VALUE: dict[str, Any] = {
    "projections": ("query_key_value", "dense"),
    "fused_groups": all_heads,
    "kv_heads": all_heads,
}
# Learned positions instead of a rotary embedding.
_GPT2: dict[str, Any] = {
    "rotary": None,
    "base": "transformer",
    "embed_name": "wte",
    "positions_name": "wpe",
    "layers_name": "h",
    "final_norm": "ln_f",
    "attention_name": "attn",
    "norms": ("ln_1", "ln_2", "", ""),
    "projections": ("c_attn", "c_proj"),
    **_LAYER_NORM,
}
# A layer of these with full attention has no rotary embedding, unless all layers are such.
_EXAONE: dict[str, Any] = {
    **_HEADS,
    "window": window_of_type,
    "rotates": lambda attention: attention.sliding_window is None or attention.is_sliding,
}

FAMILIES: dict[str, Callable[[str], Family]] = {
    # Llama's layer: two RMSNorms, separate projections, halves rotated, a gated MLP or experts.
    **dict.fromkeys(("llama", "internlm3", "iquestcoder"), layout("Llama", "llama")),
    "arcee": layout("Arcee"),
    "cwm": layout("Cwm", window=window_of_layer),
    "ministral": layout("Ministral", window=window_of_layer),
    "ministral3": layout("Ministral3", window=window_of_model, refuse=_no_query_scale),
    "mistral": layout("Mistral", window=window_of_model),
    "mixtral": layout("Mixtral", window=window_of_model),
    "qwen2": layout("Qwen2", window=window_of_layer),
    "qwen2_moe": layout("Qwen2Moe", window=window_of_layer),
    "seed_oss": layout("SeedOss"),
    "smollm3": layout(
        "SmolLM3", window=window_of_layer, rotates=lambda attention: bool(attention.use_rope)
    ),
    "solar_open": layout("SolarOpen", partial_rotary=True),
    # … with norms of queries and keys.
    "apertus": layout(
        "Apertus", norms=("attention_layernorm", "feedforward_layernorm", "", ""), **_HEADS
    ),
    "dots1": layout("Dots1", window=window_of_layer, **_HEADS),
    "glm4_moe": layout("Glm4Moe", partial_rotary=True, **_HEADS),
    "hunyuan_v1_dense": layout("HunYuanDenseV1", **_LATE_HEADS),
    "hunyuan_v1_moe": layout("HunYuanMoEV1", **_LATE_HEADS),
    "mellum": layout("Mellum", window=window_of_layer, **_HEADS),
    "minimax_m2": layout("MiniMaxM2", partial_rotary=True, **_ALL_HEADS),
    "olmoe": layout("Olmoe", refuse=_CLIPPED, **_ALL_HEADS),
    "qwen3": layout("Qwen3", window=window_of_layer, **_HEADS),
    "qwen3_moe": layout("Qwen3Moe", window=window_of_layer, **_HEADS),
    # … and a norm before the output projection.
    "bitnet": layout("BitNet", output_norm="attn_sub_norm"),
    # … multiplied here and there.
    "granite": layout("Granite", **_GRANITE),
    "granitemoe": layout("GraniteMoe", mlp_name="block_sparse_moe", **_GRANITE),
    # … with neighbours rotated instead of halves.
    "ernie4_5": layout("Ernie4_5", interleaved=True),
    "ernie4_5_moe": layout("Ernie4_5_Moe", interleaved=True),
    "helium": layout("Helium", interleaved=True),
    "glm": layout("Glm", interleaved=True, partial_rotary=True),
    "glm4": layout(
        "Glm4",
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "post_self_attn_layernorm",
            "post_mlp_layernorm",
        ),
        interleaved=True,
        partial_rotary=True,
    ),
    # Norms of what attention and MLP add, instead of what they read.
    "olmo2": layout("Olmo2", norms=_AFTER, **_ALL_HEADS),
    "flex_olmo": layout("FlexOlmo", norms=_AFTER, **_ALL_HEADS),
    "olmo3": layout("Olmo3", norms=_AFTER, window=window_of_layer, **_ALL_HEADS),
    "exaone4": layout("Exaone4", norms=_AFTER, **_EXAONE),
    "exaone_moe": layout("ExaoneMoe", **_EXAONE),
    # Gemma: weights of norms stored minus one. The embedding module scales its own output. Gemma
    # 3's configuration has an attn_logit_softcapping that none of its models reads.
    "gemma": layout(
        "Gemma", embedding="GemmaTextScaledWordEmbedding", refuse=_BIDIRECTIONAL, **_GEMMA
    ),
    "gemma2": layout(
        "Gemma2",
        embedding="Gemma2TextScaledWordEmbedding",
        norms=_SANDWICH,
        window=window_of_layer,
        attention_softcap=attrgetter("attn_logit_softcapping"),
        refuse=_BIDIRECTIONAL,
        **_GEMMA,
    ),
    "gemma3_text": layout(
        "Gemma3",
        "gemma3",
        base_model="Gemma3TextModel",
        embedding="Gemma3TextScaledWordEmbedding",
        norms=_SANDWICH,
        window=window_of_layer,
        refuse=_BIDIRECTIONAL,
        **_HEADS,
        **_GEMMA,
    ),
    "vaultgemma": layout(
        "VaultGemma",
        embedding="VaultGemmaTextScaledWordEmbedding",
        norms=("input_layernorm", "pre_feedforward_layernorm", "", ""),
        window=window_of_layer,
        attention_softcap=attrgetter("attn_logit_softcapping"),
        **_GEMMA,
    ),
    # Layer norms.
    "jais2": layout("Jais2", **_LAYER_NORM),
    "nemotron": layout("Nemotron", norm="NemotronLayerNorm1P", norm_eps="", partial_rotary=True),
    "olmo": layout("Olmo", norm="OlmoLayerNorm", norm_eps="", refuse=_CLIPPED),
    "phimoe": layout("Phimoe", **_LAYER_NORM),
    "starcoder2": layout("Starcoder2", window=window_of_model, **_LAYER_NORM),
    "stablelm": layout(
        "StableLm",
        partial_rotary=True,
        parallel=attrgetter("use_parallel_residual"),
        refuse=_no("qk_layernorm", "one norm for every head"),
        **_LAYER_NORM,
    ),
    # Attention and MLP side by side.
    "cohere": layout("Cohere", norm="CohereLayerNorm", **_HEADS, **_COHERE),
    "cohere2": layout(
        "Cohere2",
        norm="Cohere2LayerNorm",
        window=window_of_layer,
        rotates=lambda attention: attention.sliding_window is not None,
        **_COHERE,
    ),
    "phi": layout(
        "Phi",
        norms=_SHARED_NORM,
        final_norm="final_layernorm",
        projections=("q_proj", "k_proj", "v_proj", "dense"),
        head_norms=("q_layernorm", "k_layernorm"),
        partial_rotary=True,
        parallel=always,
        **_LAYER_NORM,
    ),
    # One projection for queries, keys and values.
    "phi3": layout(
        "Phi3",
        projections=("qkv_proj", "o_proj"),
        fused_groups=constant(1),
        partial_rotary=True,
        window=window_of_model,
    ),
    "gpt_neox": layout(
        "GPTNeoX",
        decoder_layer="GPTNeoXLayer",
        base="gpt_neox",
        embed_name="embed_in",
        final_norm="final_layer_norm",
        attention_name="attention",
        **_QUERY_KEY_VALUE,
        partial_rotary=True,
        parallel=attrgetter("use_parallel_residual"),
        **_LAYER_NORM,
    ),
    "persimmon": layout(
        "Persimmon",
        final_norm="final_layernorm",
        **_QUERY_KEY_VALUE,
        head_norms=("q_layernorm", "k_layernorm"),
        partial_rotary=True,
        **_LAYER_NORM,
    ),
    "falcon": layout(
        "Falcon",
        base="transformer",
        embed_name="word_embeddings",
        layers_name="h",
        final_norm="ln_f",
        attention_name="self_attention",
        norms=("ln_attn|input_layernorm", "ln_mlp|post_attention_layernorm", "", ""),
        projections=("query_key_value", "dense"),
        fused_groups=_falcon_groups,
        kv_heads=_falcon_groups,
        scale=lambda attention: attention.head_dim**-0.5,
        parallel=lambda layer: layer.config.new_decoder_architecture or layer.config.parallel_attn,
        refuse=_no_bias,
        **_LAYER_NORM,
    ),
    # Learned positions instead of a rotary embedding.
    "gpt2": layout(
        "GPT2",
        causal_lm="GPT2LMHeadModel",
        decoder_layer="GPT2Block",
        fused_groups=constant(1),
        kv_heads=all_heads,
        **_GPT2,
    ),
    "gpt_bigcode": layout(
        "GPTBigCode",
        decoder_layer="GPTBigCodeBlock",
        fused_groups=_query_groups,
        kv_heads=_query_groups,
        **_GPT2,
    ),
}
