"""Llama, and the many models that use its classes (SmolLM2, TinyLlama, Yi, …)."""

from transformers.models.llama import modeling_llama as llama

from .family import Family

FAMILY = Family(
    causal_lm=llama.LlamaForCausalLM,
    base_model=llama.LlamaModel,
    decoder_layer=llama.LlamaDecoderLayer,
    attention=llama.LlamaAttention,
    mlp=llama.LlamaMLP,
    norm=llama.LlamaRMSNorm,
    rotary=llama.LlamaRotaryEmbedding,
)
