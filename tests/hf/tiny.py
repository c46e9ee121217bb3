"""The tiny models of these tests, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import helpers
import torch
from torch import Tensor, nn

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Four layers and a short context for Llama, which most tests use.
MODELS: dict[str, Callable[[], nn.Module]] = {
    **helpers.MODELS,
    "llama": lambda: helpers.tiny_llama(num_hidden_layers=4, max_position_embeddings=128),
    "llama-bias": lambda: helpers.tiny_llama(
        attention_bias=True, mlp_bias=True, head_dim=16, rope_parameters=_LLAMA3_ROPE
    ),
    "qwen3-yarn": lambda: helpers.tiny_qwen3(rope_parameters=_YARN),
}

# Drops, revives and scores with several queries, on a model whose layers 1 and 2 see everything.
PRUNING: dict[str, Any] = {
    "boundaries": [{"layer": 1, "keep": 0.6}, {"layer": 2, "keep": 0.3}],
    "window": 2,
    "pool": 3,
    "protect_first": 1,
}


def tiny_model(name: str) -> nn.Module:
    """A model of the table, made anew, the same weights each time."""
    return MODELS[name]()


def keep_all(model: nn.Module) -> dict[str, Any]:
    """A schedule that scores and selects wherever it can, and keeps every token."""
    layers = helpers.boundary_layers(model)
    return {
        "boundaries": [{"layer": layer, "keep": 1.0} for layer in layers],
        "window": 3,
        "pool": 3,
    }


def left_padded(prompts: list[Tensor], pad: int = 0) -> dict[str, Tensor]:
    """Prompts of different lengths as one batch, input_ids and attention_mask."""
    columns = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), columns), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, columns - len(prompt) :] = prompt
        mask[row, columns - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: nn.Module, new_tokens: int = 8, **kwargs: Any) -> Any:
    """`generate` with the logits of each step; greedy and to the end, unless told otherwise."""
    arguments = {
        "do_sample": False,
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    return model.generate(**{**arguments, **kwargs})


def assert_same_generation(got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal tokens, and logits equal to rounding at every step."""
    assert torch.equal(got.sequences, expected.sequences)
    for step, (ours, theirs) in enumerate(zip(got.logits, expected.logits, strict=True)):
        torch.testing.assert_close(
            ours, theirs, atol=tolerance, rtol=0, msg=lambda text, step=step: f"step {step}: {text}"
        )
