"""The oracle itself: transformers' model without pruning, the paper's prefill with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    MODELS,
    boundary_layers,
    full_attention,
    random_ids,
    shared_model,
    tiny_llama,
    transformers_logits,
)
from oracle import Oracle
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.schedule import Boundary, PruningSchedule

TOLERANCE = 1e-4


def no_boundary(model: nn.Module) -> PruningSchedule:
    return PruningSchedule()


def keep_all(model: nn.Module) -> PruningSchedule:
    """Scores and selects wherever it may, and keeps everything."""
    boundaries = tuple(Boundary(layer=layer, keep=1.0) for layer in boundary_layers(model))
    return PruningSchedule(boundaries, window=3, pool=3, protect_first=1)


def oracle_of(model: nn.Module, schedule: PruningSchedule) -> Oracle:
    return Oracle(model, schedule.resolve(full_attention(model)))


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("make_schedule", [no_boundary, keep_all])
@pytest.mark.parametrize("name", MODELS)
class TestNothingDropped:
    def test_prefill_decoding_and_turns(
        self, name: str, make_schedule: Callable[[nn.Module], PruningSchedule]
    ) -> None:
        model = shared_model(name)
        oracle = oracle_of(model, make_schedule(model))
        ids = random_ids(31, seed=1)
        expected = transformers_logits(model, ids)
        # Several tokens and one at a time, longer than the sliding window and shorter.
        begin = 0
        for count, asked in [(17, 3), (1, 1), (1, 1), (1, 1), (6, 6), (1, 1), (4, 1)]:
            logits = oracle.step(ids[begin : begin + count], logits_to_keep=asked)
            begin += count
            assert_close(logits, expected[begin - asked : begin])

    def test_against_its_cache_with_a_gap_in_positions(
        self, name: str, make_schedule: Callable[[nn.Module], PruningSchedule]
    ) -> None:
        model = shared_model(name)
        oracle = oracle_of(model, make_schedule(model))
        ids = random_ids(19, seed=2)
        positions = [*range(2, 13), *range(30, 38)]  # 11 tokens, then 8
        cache = DynamicCache(config=model.config)
        begin = 0
        for count in (11, 5, 1, 1, 1):
            end = begin + count
            with torch.no_grad():
                expected = model(
                    torch.tensor([ids[begin:end]]),
                    attention_mask=torch.ones(1, end),
                    position_ids=torch.tensor([positions[begin:end]]),
                    **{CACHE_NAME: cache},
                ).logits[0]
            logits = oracle.step(ids[begin:end], positions[begin:end], logits_to_keep=count)
            assert_close(logits, expected)
            begin = end

    def test_greedy_crop_and_embeddings(
        self, name: str, make_schedule: Callable[[nn.Module], PruningSchedule]
    ) -> None:
        model = shared_model(name)
        oracle = oracle_of(model, make_schedule(model))
        prompt = random_ids(12, seed=3)
        generated = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False
        )[0].tolist()
        embeddings = model.get_input_embeddings()(torch.tensor(prompt))
        logits = oracle.step(embeddings=embeddings)
        # transformers forbids the end of text within min_new_tokens; so does this.
        for token in generated[12:]:
            logits[:, model.config.eos_token_id] = -torch.inf
            assert logits[-1].argmax().item() == token
            logits = oracle.step([token])
        oracle.crop(4)
        other = random_ids(3, seed=4)
        logits = oracle.step(other, logits_to_keep=3)
        assert_close(logits, transformers_logits(model, generated[:14] + other)[-3:])


@torch.no_grad()
def paper_prefill(
    model: Any, ids: list[int], layer: int, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One boundary as the paper has it, with transformers' own layers, each run as a whole.

    Layers up to and including `layer` run for all tokens, the others for the `count` ones that the
    last query gives the most attention, and for the last token itself.

    Returns:
        importance [n], the kept tokens ascending, logits [vocab] of the last token.
    """
    base = model.model
    hidden, positions = base.embed_tokens(torch.tensor([ids])), torch.arange(len(ids))
    for number, block in enumerate(base.layers):
        mask = create_causal_mask(
            config=model.config,
            inputs_embeds=hidden,
            attention_mask=None,
            **{CACHE_NAME: None},
            position_ids=None,
        )
        rotary = base.rotary_emb(hidden, positions.unsqueeze(0))
        if number == layer:
            normed = block.input_layernorm(hidden)
            attention = block.self_attn(normed, position_embeddings=rotary, attention_mask=mask)[1]
            importance = attention[0, :, -1].mean(dim=0)  # [heads, n] -> [n]
        hidden = block(hidden, attention_mask=mask, position_embeddings=rotary)
        if number == layer:
            ranked = importance[:-1].argsort(descending=True)[: count - 1]
            kept = torch.cat([ranked.sort().values, torch.tensor([len(ids) - 1])])
            hidden, positions = hidden[:, kept], positions[kept]
    return importance, kept, model.lm_head(base.norm(hidden))[0, -1]


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("keep", [0.1, 0.35, 0.8])
def test_prefill_is_the_papers(layer: int, keep: float) -> None:
    """The lazy boundary leaves out work, and changes nothing."""
    model: Any = tiny_llama(attn_implementation="eager")
    ids = random_ids(23, seed=5)
    oracle = oracle_of(model, PruningSchedule((Boundary(layer=layer, keep=keep),)))
    logits = oracle.step(ids)
    expected = paper_prefill(model, ids, layer, len(oracle.active[1]))
    assert len(oracle.active[1]) == math.ceil(keep * 23)
    torch.testing.assert_close(oracle.importance[1], expected[0], atol=1e-6, rtol=1e-5)
    assert oracle.active[1] == expected[1].tolist()
    assert_close(logits[0], expected[2])
