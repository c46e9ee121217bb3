"""Mistral: Llama's layers, all of them with a sliding window if the configuration sets one."""

from typing import Any

from transformers.models.mistral import modeling_mistral as mistral

from .family import Family


def _window(attention: Any) -> int:
    return attention.config.sliding_window or 0


FAMILY = Family(
    causal_lm=mistral.MistralForCausalLM,
    base_model=mistral.MistralModel,
    decoder_layer=mistral.MistralDecoderLayer,
    attention=mistral.MistralAttention,
    mlp=mistral.MistralMLP,
    norm=mistral.MistralRMSNorm,
    rotary=mistral.MistralRotaryEmbedding,
    window=_window,
)
