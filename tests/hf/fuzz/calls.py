"""Calls of generate and of the model itself, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..tiny import generate, left_padded

Way = Callable[..., Any]


def prompt(seed: int) -> Tensor:
    """[1, 9 to 12] token ids; a part comes twice, so that prompt lookup finds drafts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 83, (1, 9 + seed % 4), generator=generator)
    ids[0, 6:9] = ids[0, 1:4]
    return ids


def _way(**options: Any) -> Way:
    def way(model: Any, ids: Tensor | None, **more: Any) -> Any:
        return generate(
            model, 4, **{**({} if ids is None else {"input_ids": ids}), **options, **more}
        )

    return way


def _bare(**options: Any) -> Way:
    """As a user calls it who leaves everything to the configuration: the tokens alone."""

    def way(model: Any, ids: Tensor | None, **more: Any) -> Any:
        return model.generate(ids, max_new_tokens=4, **options, **more)

    return way


def _embeds(model: Any, ids: Tensor, **more: Any) -> Any:
    embeds = model.get_input_embeddings()(ids)
    return generate(model, 4, inputs_embeds=embeds, **more)


def _padded(model: Any, ids: Tensor, **more: Any) -> Any:
    """On the left: on the right ours differs, and warns of it."""
    batch = left_padded([ids[0], ids[0, 2:6], ids[0, 1:]])
    return generate(model, 4, **{**batch, **more})


WAYS: dict[str, Way] = {
    "greedy": _way(),
    "bare": _bare(),
    "sampled": _way(do_sample=True, temperature=1.3),
    "beams": _way(num_beams=3, num_return_sequences=2),
    "beam sampling": _way(num_beams=2, do_sample=True),
    "several sampled": _way(do_sample=True, num_return_sequences=2),
    "lookup": _way(prompt_lookup_num_tokens=2),
    "chunks": _way(prefill_chunk_size=4),
    "penalties": _way(repetition_penalty=1.3, no_repeat_ngram_size=2),
    "scores": _way(output_scores=True),
    "embeddings": _embeds,
    "padded": _padded,
    "padded beams": lambda model, ids, **more: _padded(model, ids, num_beams=2, **more),
    "no cache": _way(use_cache=False),
    "dynamic": _way(cache_implementation="dynamic"),
    "static": _way(cache_implementation="static"),
    "hidden states": _way(output_hidden_states=True),
    "attentions": _way(output_attentions=True),
    "one token": _way(max_new_tokens=1, min_new_tokens=1),
    "mask of ones": lambda model, ids, **more: generate(
        model, 4, input_ids=ids, **{"attention_mask": torch.ones_like(ids), **more}
    ),
    "mask of twos": lambda model, ids, **more: generate(
        model, 4, input_ids=ids, **{"attention_mask": torch.full_like(ids, 2), **more}
    ),
    "token types": lambda model, ids, **more: generate(
        model, 4, input_ids=ids, token_type_ids=torch.zeros_like(ids), **more
    ),
    "positions": lambda model, ids, **more: generate(
        model, 4, input_ids=ids, position_ids=torch.arange(ids.size(1))[None], **more
    ),
}

# What docs/generating.md lists: a model to which nothing else was done may not refuse it.
SERVED = (
    *("greedy", "bare", "sampled", "beams", "beam sampling", "several sampled", "lookup", "chunks"),
    *("penalties", "scores", "embeddings", "padded", "padded beams", "one token", "mask of ones"),
)


def _call(**options: Any) -> Way:
    return lambda model, ids, **more: model(ids, **options, **more)


def _packed(model: Any, ids: Tensor, **more: Any) -> Any:
    """Two sequences in a row, told apart by their positions."""
    half = ids.size(1) // 2
    positions = torch.cat([torch.arange(half), torch.arange(ids.size(1) - half)])[None]
    return model(ids, position_ids=positions, **more)


FORWARDS: dict[str, Way] = {
    "plain": _call(),
    "last logits": _call(logits_to_keep=1),
    "three logits": _call(logits_to_keep=3),
    "logits by index": lambda model, ids, **more: model(
        ids, logits_to_keep=torch.tensor([2]), **more
    ),
    "no cache": _call(use_cache=False, logits_to_keep=1),
    "tuple": _call(return_dict=False, logits_to_keep=1),
    "embeddings": lambda model, ids, **more: model(
        inputs_embeds=model.get_input_embeddings()(ids), logits_to_keep=1, **more
    ),
    "not causal": _call(is_causal=False, logits_to_keep=1),
    "token types": lambda model, ids, **more: model(
        ids, token_type_ids=torch.zeros_like(ids), logits_to_keep=1, **more
    ),
    "packed": lambda model, ids, **more: _packed(model, ids, logits_to_keep=1, use_cache=False),
    "packed with a cache": lambda model, ids, **more: _packed(model, ids, logits_to_keep=1),
    "positions": lambda model, ids, **more: model(
        ids, position_ids=torch.arange(ids.size(1))[None] + 3, logits_to_keep=1
    ),
    "repeated positions": lambda model, ids, **more: model(
        ids, position_ids=torch.full_like(ids, 2), logits_to_keep=1
    ),
    "mask of twos": lambda model, ids, **more: model(
        ids, attention_mask=torch.full_like(ids, 2), logits_to_keep=1
    ),
    "wide mask": lambda model, ids, **more: model(
        ids, attention_mask=torch.ones(1, ids.size(1) + 2), logits_to_keep=1
    ),
    "square mask": lambda model, ids, **more: model(
        ids,
        attention_mask=torch.ones(ids.size(1), ids.size(1)).tril()[None, None].bool(),
        logits_to_keep=1,
    ),
    "hidden states": _call(output_hidden_states=True, logits_to_keep=1),
    "attentions": _call(output_attentions=True, logits_to_keep=1),
    "router logits": _call(output_router_logits=True, logits_to_keep=1),
    "labels": lambda model, ids, **more: model(ids, labels=ids, **more),
}


def adapter_config(rank: int) -> Any:
    """LoRA on all linear layers, its weights drawn so that it changes results."""
    import peft

    return peft.LoraConfig(
        r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
