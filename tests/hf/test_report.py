"""The report of a generation: numbers that can be counted by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext
from lazyllm_ext import Report

from .tiny import generate, left_padded

# Four layers, 13 tokens: 7 pass layer 1, 3 pass layer 2, and nothing is revived.
SCHEDULE = {
    "boundaries": [{"layer": 1, "keep": 0.5}, {"layer": 2, "keep": 0.2}],
    "max_revive": 0,
    "name": "by hand",
}


def test_a_prompt(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, SCHEDULE)
    report = model(ids[:1], logits_to_keep=1).past_key_values.report()
    assert report.schedule["name"] == "by hand"
    assert report.boundary_layers == [1, 2]
    assert (report.sequences, report.prompt_tokens, report.cached_tokens) == (1, 13, 0)
    assert (report.generated_tokens, report.tokens_total) == (1, 13)
    assert report.tokens_per_stage == [13, 7, 3]
    assert report.tokens_per_layer == [13, 7, 3, 1]
    assert report.prompt_computed_percent == pytest.approx(100 * (13 + 7 + 3 + 1) / 4 / 13)
    assert report.revived_per_boundary == [0, 0]
    assert report.ttft_seconds > 0
    assert report.decode_seconds == 0
    assert report.decode_seconds_per_token is None
    assert report.decode_tokens_per_second is None
    per_token = 2 * 2 * 12 * 4  # keys and values, 2 heads, 12 dimensions, float32
    assert report.dense_kv_bytes == 13 * 4 * per_token
    assert report.kv_bytes >= (13 * 2 + 7 + 3) * per_token
    assert report.aux_bytes >= (6 + 4) * 48 * 4


def test_cropped_tokens_are_not_counted(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, SCHEDULE)
    cache = model(ids[:1], logits_to_keep=1).past_key_values
    cache.crop(-3)
    report = cache.report()
    assert (report.prompt_tokens, report.cached_tokens, report.tokens_total) == (10, 0, 10)
    assert report.tokens_per_stage[0] == 10
    # The last token, which always passes every boundary, is one of those that went.
    assert report.tokens_per_stage[2] <= 2
    assert report.prompt_computed_percent <= 100
    cache.crop(-10)
    report = cache.report()
    assert (report.prompt_tokens, report.prompt_computed_percent) == (0, 0)


@pytest.mark.parametrize("removed", [0, 1, 4, 8, 15])
def test_cropped_tokens_of_the_last_layer(model: nn.Module, ids: Tensor, removed: int) -> None:
    """8 tokens, of which the last was not read: the prompt's last token and 7 after it."""
    lazyllm_ext.apply(model, SCHEDULE)
    cache = generate(model, input_ids=ids[:2]).past_key_values
    cache.crop(-removed)
    report = cache.report()
    finished = max(8 - removed, 0)
    assert report.tokens_per_layer[-1] == 2 * finished
    assert report.tokens_total == 2 * (20 - removed)


def test_generation(model: nn.Module, ids: Tensor) -> None:
    lazy = lazyllm_ext.apply(model, SCHEDULE)
    batch = left_padded([ids[0], ids[1, :5]])
    out = generate(model, **batch)
    report = lazy.report()
    assert report == out.past_key_values.report()
    assert (report.sequences, report.prompt_tokens, report.generated_tokens) == (2, 18, 16)
    assert report.tokens_total == 18 + 2 * 7
    # 5 tokens: 3 pass layer 1, 1 passes layer 2. The 14 tokens after the prompts always pass.
    assert report.tokens_per_stage == [18 + 14, 7 + 3 + 14, 3 + 1 + 14]
    assert report.tokens_per_layer == [32, 24, 18, 16]
    assert report.prompt_computed_percent == pytest.approx(100 * (18 + 10 + 4 + 2) / 4 / 18)
    assert report.decode_seconds_per_token == pytest.approx(report.decode_seconds / 7)
    assert report.decode_tokens_per_second == pytest.approx(14 / report.decode_seconds)


def test_a_second_turn(model: nn.Module, ids: Tensor) -> None:
    lazy = lazyllm_ext.apply(model, SCHEDULE)
    first = generate(model, input_ids=ids[:1])
    more = torch.cat([first.sequences, ids[:1, :4]], dim=1)
    generate(
        model,
        input_ids=more,
        attention_mask=torch.ones_like(more),
        past_key_values=first.past_key_values,
    )
    report = lazy.report()
    assert (report.cached_tokens, report.prompt_tokens, report.generated_tokens) == (20, 5, 8)
    assert report.tokens_total == 32


def test_revivals_are_of_the_turn(model: nn.Module, ids: Tensor) -> None:
    lazy = lazyllm_ext.apply(model, {**SCHEDULE, "max_revive": None})
    first = generate(model, input_ids=ids[:1])
    before = lazy.report().revived_per_boundary
    assert sum(before) > 0
    more = torch.cat([first.sequences, ids[:1, :4]], dim=1)
    past, mask = first.past_key_values, torch.ones_like(more)
    model.generate(more, attention_mask=mask, past_key_values=past, max_new_tokens=1)
    total = [int(count) for count in past.state.revived]
    assert lazy.report().revived_per_boundary == [
        all_of_it - earlier for all_of_it, earlier in zip(total, before, strict=True)
    ]


def test_json(model: nn.Module, ids: Tensor) -> None:
    lazy = lazyllm_ext.apply(model, "dense")
    with pytest.raises(ValueError, match="expected a finished generation, got none"):
        lazy.report()
    generate(model, input_ids=ids)
    report: Any = lazy.report()
    assert json.loads(report.to_json()) == report.to_dict()
    assert Report.from_dict(json.loads(report.to_json())) == report
