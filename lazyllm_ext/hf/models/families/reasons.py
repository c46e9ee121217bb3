"""Why a `config.model_type` is refused, where more can be said than that it is not described."""

from __future__ import annotations

_ALIBI = "attention biased by distance (ALiBi) is not supported"
_SINKS = "attention sinks are not supported"
_CHUNKED = "attention in chunks is not supported"
_LATENT = "multi-head latent attention is not supported"
_RECURRENT = "recurrent or linear-attention layers hold a state that no token can be taken out of"
_SPARSE = "attention that selects its own tokens is not supported"
_ENCODER = "an encoder, or a decoder that attends to one"
_LEARNED = "positions or layers that are not described"
_AXES = "rotary positions of several axes (mrope) are not supported"
_BOTH_WAYS = "images whose tokens attend to each other both ways are not supported"
_SHARED = "layers that share keys and values are not supported"

REASONS: dict[str, str] = {
    **dict.fromkeys(("bloom", "mpt"), _ALIBI),
    **dict.fromkeys(("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash"), _SINKS),
    **dict.fromkeys(("llama4", "llama4_text"), _CHUNKED),
    **dict.fromkeys(
        (
            "deepseek_v2",
            "deepseek_v3",
            "glm4_moe_lite",
            "longcat_flash",
            "minicpm3",
            "youtu",
            "axk1",
        ),
        _LATENT,
    ),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "glm_moe_dsa"), _SPARSE),
    **dict.fromkeys(
        (
            "bailing_hybrid",
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "lfm2",
            "lfm2_moe",
            "mamba",
            "mamba2",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
            "qwen3_5_text",
            "qwen3_next",
            "recurrent_gemma",
            "rwkv",
            "xlstm",
            "zamba",
            "zamba2",
        ),
        _RECURRENT,
    ),
    **dict.fromkeys(
        (
            "bart",
            "bert",
            "bert-generation",
            "big_bird",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "marian",
            "mbart",
            "megatron-bert",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "trocr",
            "whisper",
            "xlm",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xlnet",
            "xmod",
        ),
        _ENCODER,
    ),
    **dict.fromkeys(("biogpt", "ctrl", "gpt_neo", "openai-gpt", "opt", "xglm"), _LEARNED),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _SHARED),
    **dict.fromkeys(
        (
            "ernie4_5_vl_moe",
            "glm4v",
            "glm4v_moe",
            "glm46v",
            "glm_ocr",
            "paddleocr_vl",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_omni_moe",
            "qwen3_vl",
            "qwen3_vl_moe",
            "video_llama_3",
        ),
        _AXES,
    ),
    "paligemma": _BOTH_WAYS,
    "gemma3": f"{_BOTH_WAYS}; load its text as Gemma3ForCausalLM",
    "nanochat": "its embeddings are normed and its rotation runs the other way",
    "diffllama": "the difference of two attentions is not supported",
}
