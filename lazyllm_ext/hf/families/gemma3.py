"""Gemma 3, text: four norms a layer, head norms, sliding layers with their own rotary embedding.

The embedding module scales its own output. The configuration's `attn_logit_softcapping` is read by
no Gemma 3 model in transformers, and so not here; `final_logit_softcapping` is.
"""

from typing import Any

from transformers.models.gemma3 import modeling_gemma3 as gemma3

from .family import Family, window_of_layer


def _refuse(config: Any) -> str | None:
    if config.use_bidirectional_attention:
        return "use_bidirectional_attention: attention to later tokens is not supported"
    return None


FAMILY = Family(
    causal_lm=gemma3.Gemma3ForCausalLM,
    base_model=gemma3.Gemma3TextModel,
    decoder_layer=gemma3.Gemma3DecoderLayer,
    attention=gemma3.Gemma3Attention,
    mlp=gemma3.Gemma3MLP,
    norm=gemma3.Gemma3RMSNorm,
    rotary=gemma3.Gemma3RotaryEmbedding,
    embedding=gemma3.Gemma3TextScaledWordEmbedding,
    norms=(
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    head_norms=True,
    norm_eps="eps",
    norm_offset=1.0,
    window=window_of_layer,
    rope_per_layer_type=True,
    refuse=_refuse,
)
