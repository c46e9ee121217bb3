"""Qwen3: queries and keys are normed head by head."""

from transformers.models.qwen3 import modeling_qwen3 as qwen3

from .family import Family, window_of_layer

FAMILY = Family(
    causal_lm=qwen3.Qwen3ForCausalLM,
    base_model=qwen3.Qwen3Model,
    decoder_layer=qwen3.Qwen3DecoderLayer,
    attention=qwen3.Qwen3Attention,
    mlp=qwen3.Qwen3MLP,
    norm=qwen3.Qwen3RMSNorm,
    rotary=qwen3.Qwen3RotaryEmbedding,
    head_norms=True,
    window=window_of_layer,
)
