"""What a model's own files ask of generate: honoured, overridden, or refused by name."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch

import lazyllm_ext
from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf import sampling_of, settle_defaults

IDS = torch.tensor([helpers.random_ids(40, 3)])
MASK = torch.ones_like(IDS)
OWNED: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_beams": 4, "num_return_sequences": 2},
    {"prompt_lookup_num_tokens": 3},
    {"use_cache": False},
    {"cache_implementation": "static"},
    {"return_dict_in_generate": True},
    {"output_hidden_states": True, "return_dict_in_generate": True},
    {"output_attentions": True},
    {"assistant_early_exit": 2},
]
HONOURED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"suppress_tokens": [5, 17, 40]},
    {"min_new_tokens": 6},
    {"no_repeat_ngram_size": 2},
    {"eos_token_id": [2, 30]},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guidance_scale": 1.5}, "guidance_scale=1.5 is not supported"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive_search is not supported"),
    ({"token_healing": True}, "token_healing=True is not supported"),
    ({"repetition_penalty": "much"}, "strictly positive float, but is much"),
    ({"bad_words_ids": [[10_000]]}, "vocabulary size is 83"),
    ({"stop_strings": 5}, "stop_strings: expected texts, got 5"),
    ({"max_time": "a"}, "max_time: expected a number, got 'a'"),
    ({"min_new_tokens": "a"}, "min_new_tokens: expected a number, got 'a'"),
    ({"top_k": [1]}, "top_k: expected a number, got [1]"),
    ({"eos_token_id": "x"}, "eos_token_id: expected token ids, got 'x'"),
    ({"eos_token_id": [2, 1.5]}, "eos_token_id: expected token ids, got [2, 1.5]"),
]


def model_that_asks(**settings: Any) -> Any:
    model = helpers.tiny_llama(eos_token_id=None)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def answer(model: Any) -> torch.Tensor:
    return model.generate(IDS, attention_mask=MASK, max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("asked", OWNED, ids=str)
@pytest.mark.parametrize("greedy", [False, True])
def test_what_the_caller_owns_is_overridden_and_said(asked: dict[str, Any], greedy: bool) -> None:
    model = model_that_asks(**asked)
    settled = settle_defaults(model, greedy=greedy)
    assert dict(settled.overridden) == asked
    assert all(f"{name}={value!r}" in str(settled.sentence()) for name, value in asked.items())
    with lazyllm_ext.apply(model, "dense"):
        got = answer(model)
    assert torch.equal(got, answer(helpers.tiny_llama(eos_token_id=None)))


@pytest.mark.parametrize("asked", HONOURED, ids=str)
def test_what_changes_logits_is_honoured(asked: dict[str, Any]) -> None:
    expected = answer(model_that_asks(**asked))
    model = model_that_asks(**asked)
    settled = settle_defaults(model)
    assert not settled.overridden
    assert settled.sentence() is None
    with lazyllm_ext.apply(model, "dense"):
        assert torch.equal(answer(model), expected)


@pytest.mark.parametrize("asked", HONOURED[:-1], ids=str)
def test_who_takes_the_likeliest_token_honours_none_and_says_so(asked: dict[str, Any]) -> None:
    model = model_that_asks(**asked)
    assert dict(settle_defaults(model, greedy=True).overridden) == asked
    assert torch.equal(answer(model), answer(model_that_asks()))


@pytest.mark.parametrize(("asked", "said"), REFUSED, ids=str)
def test_what_cannot_be_honoured_is_refused(asked: dict[str, Any], said: str) -> None:
    model = model_that_asks(**asked)
    before = model.generation_config
    with pytest.raises(ValueError) as refused:
        settle_defaults(model)
    assert said in str(refused.value)
    assert "the model's generation configuration: " in str(refused.value)
    assert isinstance(refused.value, NotSupportedError) == ("is not supported" in said)
    assert model.generation_config is before


def test_stop_strings_are_handed_to_the_caller() -> None:
    model = model_that_asks(stop_strings=["\n\n", "END"])
    assert settle_defaults(model).stop_strings == ("\n\n", "END")
    assert answer(model).shape == (1, 52)  # generate itself would want a tokenizer


def test_sampling_is_nobodys_surprise() -> None:
    model = model_that_asks(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, max_length=7)
    assert settle_defaults(model).sentence() is None
    assert model.generation_config.top_k == 20
    assert settle_defaults(model, greedy=True).sentence() is None


def test_sampling_that_is_the_callers() -> None:
    asked = {"top_k": 20, "min_p": 0.5, "typical_p": 0.5, "repetition_penalty": 1.5}
    model = model_that_asks(**asked)
    assert settle_defaults(model, own_sampling=False).sentence() is None
    own = model.generation_config
    assert [getattr(own, name) for name in asked] == [None, None, None, 1.5]


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-5])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature: float) -> None:
    assert sampling_of(temperature) == {"do_sample": False}
    assert sampling_of(0.5) == {"do_sample": True, "temperature": 0.5}


def test_the_form_of_outputs_in_config_json() -> None:
    model = helpers.tiny_llama()
    asked = {"use_cache": False, "return_dict": False, "output_hidden_states": True}
    for name, value in asked.items():
        setattr(model.config, name, value)
    assert dict(settle_defaults(model).overridden) == asked
    with lazyllm_ext.apply(model, "dense"):
        output = model(IDS)
    assert output.logits.shape[:2] == (1, 40)
