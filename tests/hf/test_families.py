"""Every family against its own transformers model: keeping all tokens changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

import lazyllm_ext

from .tiny import MODELS, assert_same_generation, generate, keep_all, left_padded, tiny_model

CASES = [
    pytest.param(name, schedule, id=f"{name}-{schedule}")
    for name in MODELS
    for schedule in ("dense", "keep-all")
    if (name, schedule) != ("mistral-sliding", "keep-all")  # no layer for a boundary
]


def _schedule(model: nn.Module, schedule: str) -> Any:
    return keep_all(model) if schedule == "keep-all" else schedule


@pytest.mark.parametrize(("name", "schedule"), CASES)
class TestSameAsTransformers:
    def test_greedy(self, name: str, schedule: str, ids: Tensor) -> None:
        model = tiny_model(name)
        expected = generate(model, input_ids=ids)
        lazyllm_ext.apply(model, _schedule(model, schedule))
        assert_same_generation(generate(model, input_ids=ids), expected)

    def test_left_padding_and_second_turn(self, name: str, schedule: str, ids: Tensor) -> None:
        model = tiny_model(name)
        batch = left_padded([ids[0], ids[1, :4], ids[2, :9]])
        plain = _two_turns(model, batch)
        lazyllm_ext.apply(model, _schedule(model, schedule))
        for ours, theirs in zip(_two_turns(model, batch), plain, strict=True):
            assert_same_generation(ours, theirs)


def _two_turns(model: nn.Module, batch: dict[str, Tensor]) -> list[Any]:
    """A generation, and another that goes on from its cache with three tokens more."""
    first = generate(model, **batch)
    more = torch.tensor([[11, 12, 13]]).expand(first.sequences.size(0), -1)
    ids = torch.cat([first.sequences, more], dim=1)
    mask = torch.ones_like(ids)
    mask[:, : batch["input_ids"].size(1)] = batch["attention_mask"]
    second = generate(
        model, input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values
    )
    return [first, second]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
class TestWaysToGenerate:
    def test_inputs_embeds(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        embeds = model.get_input_embeddings()(ids).detach()
        expected = generate(model, inputs_embeds=embeds)
        lazyllm_ext.apply(model, keep_all(model))
        assert_same_generation(generate(model, inputs_embeds=embeds), expected)

    def test_a_second_turn_of_inputs_embeds(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        embeds = model.get_input_embeddings()(ids).detach()
        turns = []
        for schedule in (None, keep_all(model)):
            if schedule is not None:
                lazyllm_ext.apply(model, schedule)
            first = generate(model, inputs_embeds=embeds[:, :9])
            answer = model.get_input_embeddings()(first.sequences)
            whole = torch.cat([embeds[:, :9], answer, embeds[:, 9:]], dim=1)
            turns.append(
                generate(model, inputs_embeds=whole, past_key_values=first.past_key_values)
            )
        assert_same_generation(turns[1], turns[0])

    def test_sampling_with_a_seed(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        sampling = {"do_sample": True, "temperature": 1.5, "top_k": 20, "num_return_sequences": 2}
        torch.manual_seed(3)
        expected = generate(model, input_ids=ids, **sampling)
        lazyllm_ext.apply(model, keep_all(model))
        torch.manual_seed(3)
        assert_same_generation(generate(model, input_ids=ids, **sampling), expected)

    def test_streamer(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        streams = []
        for patched in (False, True):
            if patched:
                lazyllm_ext.apply(model, keep_all(model))
            streams.append(_Recorder())
            model.generate(ids[:1], max_new_tokens=6, do_sample=False, streamer=streams[-1])
        assert streams[0].tokens == streams[1].tokens
        assert streams[1].ended

    def test_end_of_text_in_a_batch(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        free = generate(model, input_ids=ids)
        ends = {"eos_token_id": free.sequences[1, ids.size(1) + 2].item(), "min_new_tokens": None}
        expected = generate(model, input_ids=ids, **ends)
        lazyllm_ext.apply(model, keep_all(model))
        assert_same_generation(generate(model, input_ids=ids, **ends), expected)

    def test_all_logits_of_a_dense_schedule(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        with torch.no_grad():
            expected = model(ids).logits
        lazyllm_ext.apply(model, "dense")
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)

    def test_bfloat16(self, name: str, ids: Tensor) -> None:
        exact, model = tiny_model(name), tiny_model(name).to(torch.bfloat16)
        with torch.no_grad():
            reference = exact(ids, logits_to_keep=1).logits
            plain = model(ids, logits_to_keep=1).logits
        lazyllm_ext.apply(model, keep_all(model))
        ours = model(ids, logits_to_keep=1).logits
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - reference).abs().mean()
        assert error <= 2 * (plain.float() - reference).abs().mean() + 1e-3


class _Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True
