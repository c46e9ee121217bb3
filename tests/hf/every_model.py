"""Every causal language model class of the installed transformers, tiny: right, or refused by name.

Nothing is left out: a type that LazyLLM does not describe is refused before its layers are looked
at, so a bare module with its configuration's type stands for it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from helpers import tiny
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lazyllm_ext
from lazyllm_ext.hf import SUPPORTED
from lazyllm_ext.hf.models.families import WRAPPERS
from lazyllm_ext.schedule import Boundary, PruningSchedule

from .tiny import assert_same_generation, generate, left_padded

# model type -> its class, as transformers maps them.
EVERY_TYPE: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Types that have another layout in older versions of transformers, and are refused there.
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
REFUSED_HERE = ["gpt_neox", "nemotron"] if OLD else []
HERE = sorted(
    kind
    for kind in EVERY_TYPE
    if CONFIG_MAPPING[kind].model_type in SUPPORTED and kind not in REFUSED_HERE
)
WITH_IMAGES = sorted(kind for kind in EVERY_TYPE if kind in WRAPPERS)  # test_images.py has them
REFUSED = sorted({*EVERY_TYPE} - {*HERE, *REFUSED_HERE, *WITH_IMAGES})

_SLIDING = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2}
_ROPES = {
    kind: {"rope_type": "default", "rope_theta": theta}
    for kind, theta in (("sliding_attention", 100.0), ("full_attention", 1e4))
}
_HALF_ROTATED = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}

# What makes a tiny model of a type show all that its layers can do.
_OWN: dict[str, dict[str, Any]] = {
    "cwm": _SLIDING,
    "ministral": _SLIDING,
    "mistral": {"sliding_window": None},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "llama_4_scaling_beta": 0.0,
        }
    },
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt_neox": _HALF_ROTATED,
    "persimmon": _HALF_ROTATED,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, **_SLIDING},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, **_SLIDING},
    "apertus": {"hidden_act": "silu"},
    "dots1": _SLIDING,
    "mellum": {
        "rope_parameters": _ROPES,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        **_SLIDING,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "exaone4": _SLIDING,
    "exaone_moe": {"mlp_layer_types": ["dense", "sparse"] * 2, **_SLIDING},
    "olmo3": {"rope_parameters": _ROPES["full_attention"] if OLD else _ROPES, **_SLIDING},
    "gemma2": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20, **_SLIDING},
    "gemma3_text": {"query_pre_attn_scalar": 20, "final_logit_softcapping": 15.0, **_SLIDING},
    "vaultgemma": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 20, **_SLIDING},
    "cohere": {"use_qk_norm": True},
    "cohere2": _SLIDING,
    "stablelm": {"use_parallel_residual": True, **_HALF_ROTATED},
    "phi": {"qk_layernorm": True},
}
_OWN["granitemoe"] = _OWN["granite"]

# More models of a type than one, where its configurations differ in what is computed.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "exaone4": {"no window": {"sliding_window": None, "layer_types": ["full_attention"] * 4}},
    "cohere": {"no head norms": {"use_qk_norm": False}},
    "stablelm": {"sequential": {"use_parallel_residual": False}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}},
    "falcon": {
        "7b": {"new_decoder_architecture": False, "multi_query": True},
        "sequential": {
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
            "num_kv_heads": 4,
        },
        "one norm": {"num_ln_in_parallel_attn": 1},
    },
    "gpt2": {"scaled by layer": {"scale_attn_by_inverse_layer_idx": True}},
    "gpt_bigcode": {"all heads": {"multi_query": False}},
    "mistral": {"window": {"sliding_window": 7}},
    "mixtral": {"window": {"sliding_window": 7}},
    "phi3": {"window": {"sliding_window": 7}},
    "starcoder2": {"window": {"sliding_window": 7}},
}


def tiny_of(kind: str, **fields: Any) -> Any:
    """A tiny random model of a type."""
    computed = isinstance(getattr(CONFIG_MAPPING[kind], "head_dim", None), property)
    own = {} if computed else {"head_dim": 12}
    own = {**own, "attn_implementation": "eager", **_EXPERTS, **_OWN.get(kind, {})}
    make = AutoModelForCausalLM.from_config
    return tiny(make, CONFIG_MAPPING[kind], {"num_hidden_layers": 4, **own, **fields})


def refusal(kind: str) -> str:
    """Why a model of a type is refused; AssertionError if it is not."""
    model: Any = nn.Module()
    model.config = SimpleNamespace(model_type=CONFIG_MAPPING[kind].model_type)
    try:
        lazyllm_ext.apply(model, "dense")
    except ValueError as error:
        words = str(error)
    else:
        raise AssertionError(f"{kind}: neither computed nor refused")
    got = f"got {model.config.model_type!r} (Module): "
    assert got in words, words
    return words.split(got)[1]


def check_right(model: Any) -> None:
    """Equal to transformers with nothing dropped: prefill, decoding, a left-padded batch."""
    ids = torch.randint(3, 83, (3, 13), generator=torch.Generator().manual_seed(7))
    batch = left_padded([ids[0], ids[1, :4], ids[2, :9]])
    expected = [generate(model, 4, input_ids=ids), generate(model, 4, **batch)]
    decoder = lazyllm_ext.LazyDecoder.from_model(model, "dense")
    full = [layer.window == 0 for layer in decoder.layers]
    boundaries = tuple(Boundary(layer=i, keep=1.0) for i, yes in enumerate(full[:-1]) if yes)
    with lazyllm_ext.apply(model, PruningSchedule(boundaries, window=3, pool=3)):
        for ours, theirs in zip(
            [generate(model, 4, input_ids=ids), generate(model, 4, **batch)], expected, strict=True
        ):
            assert_same_generation(ours, theirs)
    with lazyllm_ext.apply(model, "dense"):
        assert_same_generation(generate(model, 4, **batch), expected[1])


def row(kind: str) -> str:
    """A type's line of the table in docs/families.md."""
    outcome = f"refused: {refusal(kind)}" if kind in REFUSED else "supported"
    return f"| `{kind}` | {EVERY_TYPE[kind]} | {outcome} |"
