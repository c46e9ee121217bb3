"""Ways to generate: equal to transformers with nothing dropped, and like plain greedy otherwise."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextGenerationPipeline,
    TextIteratorStreamer,
)

import lazyllm_ext

from .every_model import OLD
from .tiny import PRUNING, assert_same_generation, generate, keep_all, left_padded, tiny_model

# Repeats itself, so that prompt lookup finds drafts.
REPEATING = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 6, 7, 8, 11, 12, 5, 6, 7]])


class _Favour(LogitsProcessor):
    """Prefers tokens that the sequence has seen."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter_add(1, input_ids, torch.full_like(scores, 0.5))


class _After(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.size(0),), input_ids.size(1) >= self.length)


def _allowed(batch: int, sequence: Tensor) -> list[int]:
    return list(range(3 + int(sequence[-1]) % 2, 83, 2))


WAYS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "beams that end": {"num_beams": 4, "early_stopping": True, "min_new_tokens": None},
    "beam sampling": {"num_beams": 3, "do_sample": True, "num_return_sequences": 3},
    "several": {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9},
    "chunks": {"prefill_chunk_size": 4},
    "processors": {"logits_processor": LogitsProcessorList([_Favour()]), "num_beams": 2},
    "constrained": {"prefix_allowed_tokens_fn": _allowed},
    "options": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[5]]},
    "stopping": {"stopping_criteria": StoppingCriteriaList([_After(17)]), "min_new_tokens": None},
    "scores": {"output_scores": True, "do_sample": True, "temperature": 1.2},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_with_nothing_dropped(way: str, padded: bool, ids: Tensor) -> None:
    model = tiny_model("llama")
    inputs = left_padded([ids[0], ids[1, :4], ids[2, :9]]) if padded else {"input_ids": ids}
    torch.manual_seed(3)
    expected = generate(model, **inputs, **WAYS[way])
    lazyllm_ext.apply(model, keep_all(model))
    torch.manual_seed(3)
    got = generate(model, **inputs, **WAYS[way])
    assert_same_generation(got, expected)
    assert got.keys() == expected.keys()
    if "scores" in expected:
        for ours, theirs in zip(got.scores, expected.scores, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    if "beam_indices" in expected:
        assert torch.equal(got.beam_indices, expected.beam_indices)
        torch.testing.assert_close(
            got.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0
        )


DRAFTS: dict[str, Any] = {
    "prompt lookup": lambda: {"prompt_lookup_num_tokens": 3},
    "an assistant": lambda: {"assistant_model": tiny_model("qwen3")},
    "an assistant that is right": lambda: {"assistant_model": tiny_model("llama")},
    "sampled": lambda: {"assistant_model": tiny_model("llama"), "do_sample": True},
}


# Before 5.23 transformers' own cache cannot crop sliding layers.
@pytest.mark.parametrize("name", ["llama", "qwen3" if OLD else "gemma3"])
@pytest.mark.parametrize("drafts", DRAFTS)
def test_drafts_with_nothing_dropped(drafts: str, name: str) -> None:
    """The newest tokens are cropped where a draft was wrong."""
    model = tiny_model(name)
    plain = generate(model, 12, input_ids=REPEATING)
    torch.manual_seed(3)
    expected = generate(model, 12, input_ids=REPEATING, **DRAFTS[drafts]())
    lazy = lazyllm_ext.apply(model, keep_all(model))
    torch.manual_seed(3)
    got = generate(model, 12, input_ids=REPEATING, **DRAFTS[drafts]())
    assert_same_generation(got, expected)
    if drafts != "sampled":
        assert torch.equal(got.sequences, plain.sequences)
    report = lazy.report()
    assert (report.prompt_tokens, report.generated_tokens) == (15, 12)


@pytest.mark.parametrize("drafts", ["prompt lookup", "an assistant"])
def test_drafts_do_not_go_on_from_a_cache(drafts: str) -> None:
    """transformers would read the cached part again."""
    model = tiny_model("llama")
    lazy = lazyllm_ext.apply(model, "dense")
    cache = lazy.prefill(REPEATING)
    more = torch.cat([REPEATING, REPEATING[:, :3]], dim=1)
    with pytest.raises(ValueError, match="drafts do not go on from a cache"):
        generate(model, 4, input_ids=more, past_key_values=cache, **DRAFTS[drafts]())


@pytest.mark.parametrize("drafts", DRAFTS)
def test_drafts_of_a_pruned_schedule(drafts: str) -> None:
    """Deterministic, of the length asked for, and the state holds what was accepted and no more."""
    model = tiny_model("llama")
    lazy = lazyllm_ext.apply(model, PRUNING)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(generate(model, 12, input_ids=REPEATING, **DRAFTS[drafts]()))
        report = lazy.report()
        assert (report.prompt_tokens, report.generated_tokens) == (15, 12)
        assert report.tokens_total == 15 + 11
        assert report.tokens_per_stage[2] < report.tokens_per_stage[0]
    assert torch.equal(made[0].sequences, made[1].sequences)


def test_chunks_of_a_pruned_schedule_are_one_step(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    expected = generate(model, input_ids=ids)
    assert_same_generation(generate(model, input_ids=ids, prefill_chunk_size=4), expected, 0)
    assert model.generation_config.prefill_chunk_size is None


def test_each_beam_of_a_pruned_schedule_is_a_sequence(model: nn.Module, ids: Tensor) -> None:
    """The best beam's tokens and score, taken step by step without beams."""
    lazyllm_ext.apply(model, PRUNING)
    out = generate(model, 6, input_ids=ids[:1], num_beams=4, output_scores=True)
    answer = out.sequences[0, 13:]
    step, total = model(ids[:1], logits_to_keep=1), 0.0
    for i, token in enumerate(answer.tolist()):
        total += float(step.logits[0, -1].log_softmax(-1)[token])
        if i < len(answer) - 1:
            cache = step.past_key_values
            step = model(torch.tensor([[token]]), past_key_values=cache)
    assert total / len(answer) == pytest.approx(float(out.sequences_scores[0]), abs=1e-4)


def test_one_beam_of_a_pruned_schedule_is_greedy(model: nn.Module, ids: Tensor) -> None:
    """Beams that cannot differ: the forbidden tokens leave one way to go on."""
    lazyllm_ext.apply(model, PRUNING)
    greedy = generate(model, input_ids=ids[:2]).sequences

    def only(batch: int, sequence: Tensor) -> list[int]:
        return [int(greedy[batch, len(sequence)])]

    beams = generate(model, input_ids=ids[:2], num_beams=2, prefix_allowed_tokens_fn=only)
    assert torch.equal(beams.sequences, greedy)


def test_drafts_by_a_part_of_the_model_are_refused(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    with pytest.raises(ValueError, match="assistant_early_exit=2 is not supported"):
        model.generate(ids[:1], max_new_tokens=2, assistant_early_exit=2)


class TestText:
    """With a tokenizer: a pipeline, and a streamer that is read from another thread."""

    def test_pipeline(self, model: nn.Module, tokenizer: Any) -> None:
        pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer, batch_size=2)
        prompts = ["a b c d e f g h", "b c d", "c a b d h"]
        arguments = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        expected = pipeline(prompts, **arguments)
        lazyllm_ext.apply(model, keep_all(model))
        assert pipeline(prompts, **arguments) == expected

    @pytest.mark.parametrize("schedule", ["keep-all", "pruned"])
    def test_streamer_from_another_thread(
        self, model: nn.Module, tokenizer: Any, schedule: str
    ) -> None:
        inputs = tokenizer("a b c d e f g h a b", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        lazyllm_ext.apply(model, PRUNING if schedule == "pruned" else keep_all(model))
        whole = generate(model, **inputs).sequences[0, inputs["input_ids"].size(1) :]
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        thread = threading.Thread(
            target=generate, args=(model,), kwargs={**inputs, "streamer": streamer}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert text.split() == tokenizer.decode(whole).split()
