"""Why a `config.model_type` is refused, where more can be said than that it is not described."""

from __future__ import annotations

_BOTH_WAYS = "images whose tokens attend to each other both ways are not supported"

_TYPES_BY_REASON = {
    "attention biased by distance (ALiBi) is not supported": "bloom mpt",
    "attention sinks are not supported": "gpt_oss granite_swa granitemoe_swa mimo_v2_flash",
    "attention in chunks is not supported": "llama4 llama4_text",
    "multi-head latent attention is not supported": (
        "deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 youtu axk1"
    ),
    "attention that selects its own tokens is not supported": (
        "deepseek_v32 deepseek_v4 glm_moe_dsa"
    ),
    "recurrent or linear-attention layers hold a state that no token can be taken out of": (
        "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 "
        "lfm2_moe mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe "
        "qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm zamba zamba2"
    ),
    "an encoder, or a decoder that attends to one": (
        "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small "
        "camembert data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart "
        "prophetnet rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm "
        "xlm-roberta xlm-roberta-xl xlnet xmod"
    ),
    "positions or layers that are not described": "biogpt ctrl gpt_neo openai-gpt opt xglm",
    "layers that share keys and values are not supported": (
        "gemma3n gemma3n_text gemma4 gemma4_text"
    ),
    "rotary positions of several axes (mrope) are not supported": (
        "ernie4_5_vl_moe glm4v glm4v_moe glm46v glm_ocr paddleocr_vl qwen2_5_omni qwen2_5_vl "
        "qwen2_vl qwen3_omni_moe qwen3_vl qwen3_vl_moe video_llama_3"
    ),
    _BOTH_WAYS: "paligemma",
    f"{_BOTH_WAYS}; load its text as Gemma3ForCausalLM": "gemma3",
    "its embeddings are normed and its rotation runs the other way": "nanochat",
    "the difference of two attentions is not supported": "diffllama",
}

REASONS: dict[str, str] = {
    kind: reason for reason, kinds in _TYPES_BY_REASON.items() for kind in kinds.split()
}
