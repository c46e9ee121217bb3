"""Single calls of a patched model: masks, positions, logits, caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import lazyllm_ext
from lazyllm_ext import LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .every_model import tiny_of
from .tiny import PRUNING, assert_same_generation, generate, keep_all, left_padded, tiny_model


def _close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.fixture
def lazy(model: nn.Module) -> Any:
    return lazyllm_ext.apply(model, PRUNING)


class TestMasks:
    def test_a_row_of_a_batch_gives_what_it_gives_alone(self, lazy: Any, ids: Tensor) -> None:
        prompts = [ids[0], ids[1, :5], ids[2, :1]]
        batch = generate(lazy.model, **left_padded(prompts))
        for row, prompt in enumerate(prompts):
            alone = generate(lazy.model, input_ids=prompt[None])
            assert torch.equal(
                batch.sequences[row, ids.size(1) :], alone.sequences[0, len(prompt) :]
            )
            for together, single in zip(batch.logits, alone.logits, strict=True):
                _close(together[row], single[0])

    @pytest.mark.parametrize(
        "mask", [[1] * 9 + [0] * 4, [0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1], [1] + [0] * 12]
    )
    def test_a_token_whose_mask_is_0_does_not_exist(
        self, lazy: Any, ids: Tensor, mask: list[int]
    ) -> None:
        """Right padding and holes included: generation goes on after the last token there is."""
        shown = torch.tensor([mask, [1] * 13])
        batch = generate(lazy.model, input_ids=ids[:2], attention_mask=shown)
        alone = generate(lazy.model, input_ids=ids[:1, shown[0] == 1])
        assert torch.equal(batch.sequences[0, 13:], alone.sequences[0, sum(mask) :])
        for together, single in zip(batch.logits, alone.logits, strict=True):
            _close(together[0], single[0])

    def test_all_logits_stand_in_their_columns(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, "dense")
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        logits = model(ids, attention_mask=mask).logits
        _close(logits[0, :9], model(ids[:1, :9]).logits[0])
        assert not logits[0, 9:].any()
        _close(logits[1:], model(ids[1:]).logits)

    def test_bool_and_float_masks(self, lazy: Any, ids: Tensor) -> None:
        mask = left_padded([ids[0], ids[1, :4]])["attention_mask"]
        expected = lazy.model(ids[:2], attention_mask=mask, logits_to_keep=1).logits
        for dtype in (torch.bool, torch.float32, torch.int32):
            got = lazy.model(ids[:2], attention_mask=mask.to(dtype), logits_to_keep=1).logits
            assert torch.equal(got, expected)

    @pytest.mark.parametrize(
        ("columns", "value", "problem"),
        [([4], 0, "hides a token that is stored"), ([0], 1, "shows a token that did not exist")],
    )
    def test_a_later_mask_may_not_contradict(
        self, lazy: Any, ids: Tensor, columns: list[int], value: int, problem: str
    ) -> None:
        batch = left_padded([ids[0], ids[1, :10]])
        past = lazy.model(**batch, logits_to_keep=1).past_key_values
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 2, dtype=torch.long)], dim=1)
        wrong = mask.clone()
        wrong[1, columns] = value
        with pytest.raises(ValueError, match=f"{problem}: sequence 1, column {columns[0]}"):
            lazy.model(ids[:2, :2], attention_mask=wrong, past_key_values=past, logits_to_keep=1)
        lazy.model(ids[:2, :2], attention_mask=mask, past_key_values=past, logits_to_keep=1)

    @pytest.mark.parametrize("padded", [False, True])
    def test_a_later_mask_may_not_hide_what_was_seen_without_one(
        self, lazy: Any, ids: Tensor, padded: bool
    ) -> None:
        """Columns of a prompt without padding, and those that generate appends."""
        prompt = left_padded([ids[0], ids[1, :10]]) if padded else {"input_ids": ids[:2]}
        cache = generate(lazy.model, **prompt).past_key_values
        seen = cache.get_seq_length()
        mask = torch.ones(2, seen + 2, dtype=torch.long)
        mask[:, :13] = prompt.get("attention_mask", mask[:, :13])
        for sequence, column in ((0, 0), (1, 4), (1, 12), (0, 13), (1, seen - 1)):
            wrong = mask.clone()
            wrong[sequence, column] = 0
            message = f"hides a token that is stored: sequence {sequence}, column {column}"
            with pytest.raises(ValueError, match=message):
                lazy.model(ids[:2, :2], attention_mask=wrong, past_key_values=cache)
            whole = torch.full_like(wrong, 9)
            with pytest.raises(ValueError, match=message):
                generate(lazy.model, input_ids=whole, attention_mask=wrong, past_key_values=cache)
        lazy.model(ids[:2, :2], attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        assert cache.get_seq_length() == seen + 2

    def test_padded_sequences_need_their_mask_again(self, lazy: Any, ids: Tensor) -> None:
        batch = left_padded([ids[0], ids[1, :10]])
        past = lazy.model(**batch, logits_to_keep=1).past_key_values
        with pytest.raises(ValueError, match="expected the mask of all columns"):
            lazy.model(ids[:2, :1], past_key_values=past)
        generated = generate(lazy.model, **batch)
        with pytest.raises(ValueError, match="expected the mask of all columns"):
            lazy.model(ids[:2, :1], past_key_values=generated.past_key_values)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.ones(3, 12), r"expected shape \[3, 13\] \(0 columns before, 13 new\)"),
            (torch.ones(3, 1, 13, 13), "expected 2 dimensions .* got 4"),
            ({"full_attention": None}, "expected 2 dimensions .* got dict"),
            (
                torch.tensor([[1] * 13, [0] * 13, [1] * 13]),
                "expected a new token in every sequence, got none in 1",
            ),
        ],
    )
    def test_masks_that_are_refused(self, lazy: Any, ids: Tensor, mask: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"attention_mask: {message}"):
            lazy.model(ids, attention_mask=mask, logits_to_keep=1)


class TestPositions:
    def test_given_positions_are_used(self, ids: Tensor) -> None:
        model = tiny_model("llama")
        positions = torch.arange(13)[None] * 3 + 1
        with torch.no_grad():
            expected = model(ids, position_ids=positions, logits_to_keep=1).logits
        lazyllm_ext.apply(model, keep_all(model))
        got = model(ids, position_ids=positions, logits_to_keep=1).logits
        _close(got, expected)
        assert (got - model(ids, logits_to_keep=1).logits).abs().max() > 1e-2

    def test_given_positions_go_on_in_generate(self, model: nn.Module, ids: Tensor) -> None:
        positions = (torch.arange(13) * 2 + 5).expand(3, -1)
        expected = generate(model, input_ids=ids, position_ids=positions)
        lazyllm_ext.apply(model, keep_all(model))
        assert_same_generation(generate(model, input_ids=ids, position_ids=positions), expected)

    def test_positions_of_all_columns_are_cut(self, lazy: Any, ids: Tensor) -> None:
        ends = []
        for positions in (None, torch.arange(13)[None], torch.arange(10, 13).expand(3, -1)):
            past = lazy.model(ids[:, :10], logits_to_keep=1).past_key_values
            later = lazy.model(
                ids[:, 10:], position_ids=positions, past_key_values=past, logits_to_keep=1
            )
            ends.append(later.logits)
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2])

    @pytest.mark.parametrize("shape", [(3, 12), (2, 13), (3, 3, 13)])
    def test_positions_of_another_shape(self, lazy: Any, ids: Tensor, shape: Any) -> None:
        with pytest.raises(ValueError, match="position_ids: expected"):
            lazy.model(ids, position_ids=torch.zeros(shape, dtype=torch.long), logits_to_keep=1)


class TestLogits:
    @pytest.mark.parametrize("kept", [1, 4, 13, 20])
    def test_the_last_ones(self, ids: Tensor, kept: int) -> None:
        model = tiny_model("llama")
        with torch.no_grad():
            expected = model(ids, logits_to_keep=kept).logits
        lazyllm_ext.apply(model, keep_all(model))
        _close(model(ids, logits_to_keep=kept).logits, expected)

    def test_more_than_a_padded_sequence_has(self, lazy: Any, ids: Tensor) -> None:
        batch = left_padded([ids[0], ids[1, :1]])
        logits = lazy.model(**batch, logits_to_keep=2).logits
        assert not logits[1, 0].any()
        _close(logits[1, 1:], lazy.model(ids[1:2, :1], logits_to_keep=1).logits[0])
        _close(logits[0], lazy.model(ids[:1], logits_to_keep=2).logits[0])
        with pytest.raises(ValueError, match="expected at most 2, since one sequence has 1 new"):
            lazy.model(**batch, logits_to_keep=3)

    def test_all_of_a_pruning_schedule(self, lazy: Any, ids: Tensor) -> None:
        with pytest.raises(ValueError, match=r"drops tokens .* got 0 \(all 13\)"):
            lazy.model(ids)
        past = lazy.model(ids, logits_to_keep=1).past_key_values
        assert lazy.model(ids[:, :1], past_key_values=past).logits.shape == (3, 1, 83)

    @pytest.mark.parametrize("wrong", [-1, torch.tensor([0, 3])])
    def test_no_number(self, lazy: Any, ids: Tensor, wrong: Any) -> None:
        with pytest.raises(ValueError, match="logits_to_keep: expected a number"):
            lazy.model(ids, logits_to_keep=wrong)

    def test_tuple(self, lazy: Any, ids: Tensor) -> None:
        logits, past = lazy.model(ids, logits_to_keep=1, return_dict=False)
        assert logits.shape == (3, 1, 83)
        assert isinstance(past, LazyCache)


class TestCaches:
    def test_an_empty_dynamic_cache_is_replaced(self, lazy: Any, ids: Tensor) -> None:
        out = lazy.model(ids, past_key_values=DynamicCache(), logits_to_keep=1)
        assert isinstance(out.past_key_values, LazyCache)
        assert out.past_key_values.get_seq_length() == 13
        own = generate(lazy.model, input_ids=ids)
        again = generate(lazy.model, input_ids=ids, past_key_values=DynamicCache())
        assert_same_generation(again, own)

    def test_without_cache(self, lazy: Any, ids: Tensor) -> None:
        out = lazy.model(ids, use_cache=False, logits_to_keep=1)
        assert out.past_key_values is None

    def test_step_by_step_as_generate(self, lazy: Any, ids: Tensor) -> None:
        expected = generate(lazy.model, input_ids=ids)
        out = lazy.model(ids, logits_to_keep=1)
        for logits in expected.logits[1:]:
            token = out.logits[:, -1:].argmax(-1)
            out = lazy.model(token, past_key_values=out.past_key_values)
            _close(out.logits[:, -1], logits)

    def test_two_caches_at_once_do_not_meet(self, lazy: Any, ids: Tensor) -> None:
        expected = [generate(lazy.model, input_ids=prompt[None]) for prompt in ids[:2]]
        outs = [lazy.model(prompt[None], logits_to_keep=1) for prompt in ids[:2]]
        for step in range(1, 8):
            for i, out in enumerate(outs):
                token = out.logits[:, -1:].argmax(-1)
                outs[i] = lazy.model(token, past_key_values=out.past_key_values)
                assert torch.equal(outs[i].logits[:, -1], expected[i].logits[step])

    def test_of_another_dtype(self, lazy: Any, ids: Tensor) -> None:
        """A model that was cast does not go on from what it computed before."""
        past = lazy.model(ids, logits_to_keep=1).past_key_values
        lazy.model.to(torch.bfloat16)
        message = f"{CACHE_NAME}: expected torch.bfloat16 on cpu, got torch.float32 on cpu"
        with pytest.raises(ValueError, match=message):
            lazy.model(ids[:, :1], past_key_values=past)
        lazy.model.to(torch.float32)
        lazy.model(ids[:, :1], past_key_values=past)

    def test_made_in_inference_mode_used_outside(self, lazy: Any, ids: Tensor) -> None:
        with torch.inference_mode():
            first = generate(lazy.model, input_ids=ids)
        more = torch.cat([first.sequences, ids[:, :3]], dim=1)
        again = generate(
            lazy.model,
            input_ids=more,
            attention_mask=torch.ones_like(more),
            past_key_values=first.past_key_values,
        )
        assert again.sequences.size(1) == 13 + 8 + 3 + 8


@pytest.mark.parametrize("held", [0, 100])
def test_as_many_tokens_as_the_model_has_positions(model: nn.Module, held: int) -> None:
    """The last position is used, and one more is refused before any work; steps may go on."""
    longest = model.config.max_position_embeddings
    ids = torch.randint(3, 83, (1, longest), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = model(ids, logits_to_keep=1).logits
    lazyllm_ext.apply(model, keep_all(model))
    past = model(ids[:, :held], logits_to_keep=1).past_key_values if held else None
    more = torch.cat([ids[:, held:], ids[:, :1]], dim=1)
    message = f"expected at most {longest} tokens .*, got {longest + 1}"
    with pytest.raises(ValueError, match=message):
        model(more, past_key_values=past, logits_to_keep=1)
    out = model(ids[:, held:], past_key_values=past, logits_to_keep=1)
    _close(out.logits, expected)
    assert generate(model, 2, input_ids=ids).sequences.size(1) == longest + 2


@pytest.mark.parametrize("on_error", ["raise", "dense"])
@pytest.mark.parametrize("kind", ["gpt2", "gpt_bigcode"])
def test_more_tokens_than_learned_positions(kind: str, on_error: str) -> None:
    """transformers cannot go on either, so nothing is left to it."""
    model = tiny_of(kind, max_position_embeddings=32)
    assert model.transformer.wpe.num_embeddings == 32
    lazyllm_ext.apply(model, "dense", on_error=on_error)
    message = "expected at most 32 tokens, since the model learned so many positions, got 33"
    short = torch.full((1, 28), 5)
    assert generate(model, 5, input_ids=short).sequences.shape == (1, 33)  # the last is not read
    for use in (
        lambda: generate(model, 6, input_ids=short),
        lambda: model(torch.full((1, 33), 5), logits_to_keep=1),
        lambda: model(short[:, :1], position_ids=torch.tensor([[32]])),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            use()
        assert not isinstance(caught.value, lazyllm_ext.NotSupportedError)
