"""Options that do not fit are refused before anything is loaded."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lazyllm_ext.lab.bench import BenchRequest, measure
from lazyllm_ext.lab.bench.request import numbers


def test_dense_is_first_and_once():
    request = BenchRequest("x", (64,), schedules=("fast", "dense", "fast"), compiled=True)
    assert request.contenders == ("transformers", "compiled", "dense", "fast")


def test_rounds():
    assert BenchRequest("x", (64, 128), rounds=(3,)).rounds_of_length == {64: 3, 128: 3}
    assert BenchRequest("x", (64, 128), rounds=(3, 1)).rounds_of_length == {64: 3, 128: 1}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"lengths": ()}, "prompt lengths: expected ascending numbers of at least 16, got none"),
        ({"lengths": (15,)}, "prompt lengths: expected ascending numbers of at least 16, got 15"),
        (
            {"lengths": (64, 32)},
            "prompt lengths: expected ascending numbers of at least 16, got 64,32",
        ),
        ({"new_tokens": 1}, "new tokens: expected at least 2, got 1"),
        (
            {"rounds": (3, 1, 1)},
            "rounds: expected one number from 1 on, or one for each of 2 lengths, got 3,1,1",
        ),
        (
            {"rounds": (0,)},
            "rounds: expected one number from 1 on, or one for each of 2 lengths, got 0",
        ),
        ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_refusals(change: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        BenchRequest(**{"model": "x", "lengths": (64, 128), **change})


def test_unknown_schedule():
    with pytest.raises(ValueError, match="nosuch"):
        BenchRequest("x", (64,), schedules=("nosuch",))


def test_unknown_shape():
    sentence = "model: expected random: and one of tiny, llama-2-7b, llama-3.1-8b, got 'huge'"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        measure(BenchRequest("random:huge", (64,)))


def test_longer_than_the_context():
    sentence = "expected at most 131072 tokens, the model's context, with 65 new ones, got 131072"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        measure(BenchRequest("random:tiny", (131072,)))


def test_numbers():
    assert numbers("rounds", "3,1") == (3, 1)
    with pytest.raises(ValueError, match="rounds: expected numbers with commas between, got '3,x'"):
        numbers("rounds", "3,x")
