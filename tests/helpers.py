"""Tiny transformers models with random weights, one of every family and its variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lazyllm_ext import PruningSchedule

# Large initial weights: queries and keys of length about 1.4 · √head_dim, so that attention is far
# from flat and greedy tokens are far apart, and logits of a few units.
_SHARED: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_llama(**overrides: Any) -> nn.Module:
    """Full attention in all 5 layers; groups of 2 heads of 12."""
    return tiny(LlamaForCausalLM, LlamaConfig, overrides)


def tiny_mistral(**overrides: Any) -> nn.Module:
    """A sliding window of 7 tokens in every layer; `sliding_window=None` for none."""
    return tiny(
        MistralForCausalLM, MistralConfig, {"sliding_window": 7, "head_dim": 16, **overrides}
    )


def tiny_qwen2(**overrides: Any) -> nn.Module:
    """Biased projections, tied embeddings, groups of 3 heads of 8; layers 3 and 4 slide."""
    own = {
        "num_attention_heads": 6,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 3,
    }
    return tiny(Qwen2ForCausalLM, Qwen2Config, {**own, **overrides})


def tiny_qwen3(**overrides: Any) -> nn.Module:
    """Head norms; heads of 16, so that the heads together are wider than the model."""
    return tiny(Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16, **overrides})


def tiny_gemma3(**overrides: Any) -> nn.Module:
    """Two rotary embeddings, sliding layers in between and at the end, one key head, soft cap."""
    sliding, full = "sliding_attention", "full_attention"
    own = {
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 20,
        "sliding_window": 7,
        "layer_types": [sliding, full, sliding, full, full, sliding],
        "final_logit_softcapping": 15.0,
    }
    return tiny(Gemma3ForCausalLM, Gemma3TextConfig, {**own, **overrides})


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": tiny_llama,
    "mistral": lambda: tiny_mistral(sliding_window=None),
    "mistral-sliding": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gemma3": tiny_gemma3,
}


@cache
def shared_model(name: str) -> nn.Module:
    """A model of `MODELS`, made once; tests that change one make their own."""
    return MODELS[name]()


def full_attention(model: nn.Module) -> list[bool]:
    """For each layer, whether it attends to all tokens."""
    config = model.config
    if getattr(config, "layer_types", None) is not None:
        return [kind == "full_attention" for kind in config.layer_types]
    return [getattr(config, "sliding_window", None) is None] * config.num_hidden_layers


def at_any_length(name: str) -> PruningSchedule:
    """A shipped schedule that prunes the short prompts of tests, too."""
    shipped = PruningSchedule.load(name)
    models = {key: replace(entry, min_tokens=0) for key, entry in shipped.models.items()}
    return replace(shipped, min_tokens=0, models=models)


def boundary_layers(model: nn.Module) -> list[int]:
    """The layers in which tokens may be dropped."""
    return [layer for layer, full in enumerate(full_attention(model)[:-1]) if full]


def random_ids(count: int, seed: int) -> list[int]:
    """Token ids, none of them a special one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, _SHARED["vocab_size"], (count,), generator=generator).tolist()


@torch.no_grad()
def transformers_logits(model: nn.Module, ids: list[int], **kwargs: Any) -> Tensor:
    """The model's own logits for every one of these tokens, [len(ids), vocab]."""
    return model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **kwargs).logits[0]


def tiny(model_class: Any, config_class: Any, fields: dict[str, Any]) -> nn.Module:
    """A model with random weights, the same ones each time."""
    config = config_class(**{**_SHARED, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = model_class(config).eval()
        for parameter in model.parameters():  # norms and biases too, which start as 1 and 0
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.requires_grad_(False)
