"""Copies of a model with LazyLLM, in this process and in others: each is one with its own."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext

from .seeing import SEEING
from .tiny import PRUNING, assert_same_generation, generate, tiny_model


def _pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": _pickled,
    "torch.save": _saved,
    "pickled as a part": lambda model: _pickled({"model": model})["model"],
    "by its Lazy": lambda model: _pickled(model.generate.__self__).model,
    "twice": lambda model: _pickled(_pickled(model)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy(model: nn.Module, ids: Tensor, way: str) -> None:
    lazy = lazyllm_ext.apply(model, PRUNING)
    expected = generate(model, input_ids=ids)
    other = {**PRUNING, "window": 3}
    of_other = generate(model, input_ids=ids, lazy_schedule=other)
    twin = COPIES[way](model)
    model.lm_head.weight.data.zero_()
    own = twin.generate.__self__
    assert own.model is twin
    assert own is not lazy
    assert own.report().tokens_per_stage == lazy.report().tokens_per_stage
    assert_same_generation(generate(twin, input_ids=ids), expected, tolerance=0)
    assert_same_generation(generate(twin, input_ids=ids, lazy_schedule=other), of_other)
    own.remove()
    assert "forward" not in twin.__dict__
    plain = generate(twin, input_ids=ids)
    assert_same_generation(plain, generate(tiny_model("llama"), input_ids=ids), tolerance=0)
    assert model.generate.__self__ is lazy


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_of_a_model_that_sees_images(ids: Tensor, way: str) -> None:
    model: Any = next(iter(SEEING.values())).make()
    lazyllm_ext.apply(model, "dense")
    expected = model(ids, logits_to_keep=1).logits
    twin = COPIES[way](model)
    assert torch.equal(twin(ids, logits_to_keep=1).logits, expected)
    own = twin.generate.__self__
    assert own.model is twin
    own.remove()
    assert not any("forward" in module.__dict__ for module in twin.modules())
    torch.testing.assert_close(twin(ids, logits_to_keep=1).logits, expected, atol=1e-4, rtol=0)


def _generate(model: Any, ids: Tensor) -> Any:
    torch.set_num_threads(1)
    return generate(model, input_ids=ids).sequences.tolist()


def test_in_a_spawned_process(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    expected = generate(model, input_ids=ids).sequences.tolist()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_generate, (model, ids)) == expected


def test_a_fallback_copied(model: nn.Module, ids: Tensor) -> None:
    """Its caches that transformers computed are not of the copy."""
    lazyllm_ext.apply(model, PRUNING, on_error="dense")
    with pytest.warns(UserWarning, match="LazyLLM refused"):
        past = model(ids, labels=ids).past_key_values
    twin = _pickled(model)
    assert past.get_seq_length() == 13
    generate(twin, input_ids=ids)
