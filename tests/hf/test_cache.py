"""LazyCache as transformers' Cache: crop, reorder, repeat, select, reset, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

import lazyllm_ext
from lazyllm_ext import LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.state import to_tensors

from .tiny import PRUNING, keep_all, left_padded


@pytest.fixture
def lazy(model: nn.Module) -> Any:
    return lazyllm_ext.apply(model, PRUNING)


def _filled(lazy: Any, input_ids: Tensor, **kwargs: Any) -> LazyCache:
    return lazy.model(input_ids, logits_to_keep=1, **kwargs).past_key_values


def _next(lazy: Any, cache: LazyCache, tokens: Tensor, **kwargs: Any) -> Tensor:
    return lazy.model(tokens, past_key_values=cache, logits_to_keep=1, **kwargs).logits


def test_interface(lazy: Any, ids: Tensor) -> None:
    cache = _filled(lazy, ids)
    assert isinstance(cache, Cache)
    assert cache.get_seq_length() == cache.get_seq_length(2) == 13
    assert cache.get_mask_sizes(2, 0) == (15, 0)
    assert cache.batch_size == 3
    assert len(cache) == 4
    assert cache.is_initialized
    assert not cache.is_compileable
    assert cache.is_croppable
    assert cache.get_max_length() == -1
    assert cache.nbytes() == cache.kv_nbytes() + cache.aux_nbytes() > cache.aux_nbytes() > 0
    assert "3 sequences, 13 columns" in repr(cache)


def test_reset(lazy: Any, ids: Tensor) -> None:
    cache = _filled(lazy, ids)
    cache.reset()
    assert cache.nbytes() == 0
    assert cache.get_seq_length() == 0
    assert not cache.is_initialized
    assert torch.equal(_next(lazy, cache, ids[:2]), _next(lazy, None, ids[:2]))


def test_crop_as_if_never_seen(model: nn.Module, ids: Tensor) -> None:
    lazy = lazyllm_ext.apply(model, keep_all(model))
    batch = left_padded([ids[0], ids[1, :8]])
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 3, dtype=torch.long)], dim=1)
    cropped, plain = _filled(lazy, **batch), _filled(lazy, **batch)
    _next(lazy, cropped, ids[:2, :3], attention_mask=mask)
    cropped.crop(0)
    cropped.crop(-3)
    assert cropped.get_seq_length() == 13
    got, expected = (
        _next(lazy, cache, ids[:2, 4:7], attention_mask=mask) for cache in (cropped, plain)
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_crop_counts_tokens_not_columns(lazy: Any, ids: Tensor) -> None:
    cache = _filled(lazy, **left_padded([ids[0], ids[1, :4]]))
    cache.crop(-6)  # more columns than the second sequence has tokens
    assert cache.state.host_length == [7, 0]
    with pytest.raises(ValueError, match="at most 7 tokens, got 8"):
        cache.crop(-8)
    cache.crop(9)  # how many stay: transformers before 5.23
    assert cache.state.host_length == [7, 0]
    cache.crop(5)
    assert cache.state.host_length == [5, 0]
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("index", [[2, 0, 0], [1], [1, 2, 1, 0]])
def test_sequences_chosen_anew(lazy: Any, ids: Tensor, index: list[int]) -> None:
    order = torch.tensor(index)
    batch = left_padded([ids[0], ids[1, :4], ids[2, :9]])
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)[order]
    chosen = _filled(lazy, **batch)
    chosen.reorder_cache(order)
    straight = _filled(lazy, **{name: value[order] for name, value in batch.items()})
    for cache in (chosen, straight):
        assert cache.batch_size == len(index)
    tokens = torch.arange(20, 20 + len(index))[:, None]
    got, expected = (
        _next(lazy, cache, tokens, attention_mask=mask) for cache in (chosen, straight)
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert chosen.report().prompt_tokens == straight.report().prompt_tokens


def test_repeat_and_select(lazy: Any, ids: Tensor) -> None:
    cache = _filled(lazy, ids[:2])
    cache.batch_repeat_interleave(2)
    logits = _next(lazy, cache, torch.full((4, 1), 9))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[2], logits[3])
    cache.batch_select_indices(torch.tensor([False, False, True, False]))
    assert cache.batch_size == 1
    alone = _filled(lazy, ids[1:2])
    _next(lazy, alone, torch.full((1, 1), 9))
    got, expected = (_next(lazy, c, torch.full((1, 1), 5)) for c in (cache, alone))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_copy_is_independent_and_light(lazy: Any, ids: Tensor) -> None:
    """A prefix computed once and copied for every question, as transformers' guide has it."""
    prefix = _filled(lazy, ids)
    twin = copy.deepcopy(prefix)
    assert twin.plan is prefix.plan
    first = _next(lazy, twin, ids[:, :4])
    assert prefix.get_seq_length() == 13
    assert twin.get_seq_length() == 17
    assert torch.equal(_next(lazy, prefix, ids[:, :4]), first)


def test_not_for_a_plain_model(lazy: Any, ids: Tensor) -> None:
    cache = _filled(lazy, ids)
    lazy.remove()
    with pytest.raises(ValueError, match="works only on the model"):
        lazy.model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("copied", [False, True])
def test_its_layers_are_not_read(lazy: Any, ids: Tensor, copied: bool) -> None:
    """As code does that knows transformers' own caches: one sentence says why not."""
    cache = lazy.prefill(ids)
    cache = cache.copy() if copied else cache
    for _ in cache.layers:  # as transformers' generate does on GPUs
        raise AssertionError("expected a loop to find nothing")
    for use in (
        lambda: cache.layers[0].keys,
        lambda: cache.layers[-1],
        lambda: cache.layers[:2],
        lambda: len(cache.layers),
        lambda: list(cache.layers),
        lambda: cache[0],
        lambda: list(cache),
        lambda: DynamicCache(cache),
        lambda: cache.has_previous_state(0),
    ):
        with pytest.raises(
            lazyllm_ext.NotSupportedError, match="LazyCache cannot be read by layers"
        ):
            use()
    for name in ("to_legacy_cache", "key_cache", "value_cache"):
        assert not hasattr(cache, name)
        with pytest.raises(AttributeError, match="LazyCache cannot be read by layers"):
            getattr(cache, name)
    assert len(cache) == lazy.model.config.num_hidden_layers


def test_report_of_an_unused_cache(lazy: Any) -> None:
    cache = lazy.new_cache()
    with pytest.raises(ValueError, match="got an empty one"):
        cache.report()
    cache.reorder_cache(torch.tensor([0]))
    assert cache.batch_size == -1
    assert cache.nbytes() == 0


def test_a_question_for_another_number_of_documents(lazy: Any, ids: Tensor) -> None:
    document = lazy.prefill(ids)
    one = torch.cat([ids[1:2] + 1, ids[1:2, :3]], dim=1)
    for asked, message in (
        (one, f"expected 3 sequences as in {CACHE_NAME}, got 1"),
        (one[:0], r"expected at least one token, got shape \[0, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            lazy.model.generate(asked, past_key_values=document, max_new_tokens=2)


@pytest.mark.parametrize("given", [[1, 2], None, "3", 1.0, torch.tensor([1, 2])])
def test_crop_takes_a_number(lazy: Any, ids: Tensor, given: Any) -> None:
    cache = _filled(lazy, ids)
    with pytest.raises(TypeError) as error:
        cache.crop(given)
    assert str(error.value) == f"crop: expected a number of columns, got {given!r}"
    cache.crop(torch.tensor(-1))
    assert cache.get_seq_length() == 12


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (torch.tensor([0, 3]), "[0, 3]"),
        (torch.tensor([-1]), "[-1]"),
        (torch.tensor([0.0]), "[0.0]"),
        (torch.tensor([[0]]), "[[0]]"),
        (torch.tensor(1), "1"),
        (torch.tensor([True, False]), "[True, False]"),
        (torch.tensor([False] * 3), "[False, False, False]"),
        (torch.tensor([], dtype=torch.int64), "[]"),
        ([0, True], "[0, True]"),
        ("all", "'all'"),
    ],
)
def test_sequences_that_there_are_not(lazy: Any, ids: Tensor, given: Any, shown: str) -> None:
    cache = _filled(lazy, ids)
    for method in (cache.batch_select_indices, cache.reorder_cache):
        with pytest.raises(ValueError) as error:
            method(given)
        assert str(error.value) == (
            "indices: expected some of the sequences 0 to 2, or a bool for each, got " + shown
        )
    assert cache.batch_size == 3
    cache.batch_select_indices([2, 0])
    assert cache.batch_size == 2


@pytest.mark.parametrize("repeats", [0, -1, 1.5, None])
def test_repeats_that_make_no_sense(lazy: Any, ids: Tensor, repeats: Any) -> None:
    cache = _filled(lazy, ids)
    with pytest.raises(ValueError, match=f"expected repeats of at least 1, got {repeats}"):
        cache.batch_repeat_interleave(repeats)
    assert cache.batch_size == 3


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, LazyCache.copy])
def test_every_copy_goes_on_by_itself(lazy: Any, ids: Tensor, how: Any) -> None:
    prefix = _filled(lazy, ids)
    twin = how(prefix)
    first = _next(lazy, twin, ids[:, :4])
    assert (prefix.get_seq_length(), twin.get_seq_length()) == (13, 17)
    assert torch.equal(_next(lazy, prefix, ids[:, :4]), first)


def test_a_pickled_cache_holds_the_same(lazy: Any, ids: Tensor) -> None:
    """Outputs of a model may be sent to another process; what goes on there is lazy.save's."""
    cache = _filled(lazy, ids)
    sent = pickle.loads(pickle.dumps(cache))
    assert (sent.get_seq_length(), sent.batch_size) == (13, 3)
    got, expected = (to_tensors(each.state, each.plan.spec) for each in (sent, cache))
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match=r"expected a cache of this lazyllm_ext.apply, got anoth"):
        _next(lazy, sent, ids)
