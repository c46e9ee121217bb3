"""Qwen2 and Qwen2.5: biased query, key and value projections, a sliding window in some layers."""

from transformers.models.qwen2 import modeling_qwen2 as qwen2

from .family import Family, window_of_layer

FAMILY = Family(
    causal_lm=qwen2.Qwen2ForCausalLM,
    base_model=qwen2.Qwen2Model,
    decoder_layer=qwen2.Qwen2DecoderLayer,
    attention=qwen2.Qwen2Attention,
    mlp=qwen2.Qwen2MLP,
    norm=qwen2.Qwen2RMSNorm,
    rotary=qwen2.Qwen2RotaryEmbedding,
    window=window_of_layer,
)
