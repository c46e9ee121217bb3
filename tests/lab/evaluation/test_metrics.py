"""Metrics on examples worked out by hand."""

from __future__ import annotations

import itertools

import pytest

from lazyllm_ext.lab.evaluation.metrics import (
    edit_similarity,
    longest_common_subsequence,
    named_class,
    normalized,
    score,
)


@pytest.mark.parametrize(
    ("metric", "output", "answer", "expected"),
    [
        ("f1", "The Eiffel Tower!", "eiffel tower", 1.0),
        ("f1", "in Paris, France", "Paris", 0.5),  # precision 1/3, recall 1
        ("f1", "a a b", "b b", 2 / 3),  # the articles go; precision 1, recall 1/2
        ("f1", "London", "Paris", 0.0),
        ("f1", "the", "a", 1.0),  # nothing is left of either
        ("f1", "", "Paris", 0.0),
        ("contains", "It is\n 35 0952.", "35 0952", 1.0),
        ("contains", "ROME it was", "rome", 1.0),
        ("contains", "Rom", "Rome", 0.0),
        # rouge-score 0.1.2 gives the same.
        ("rougeL", "the cat sat on the mat", "the cat lay on a mat", 2 * 4 / 12),
        ("rougeL", "On the mat, the cat sat.", "the cat sat", 2 * 3 / 9),
        ("rougeL", "", "the cat", 0.0),
        # rapidfuzz 3.14's fuzz.ratio gives the same.
        ("edit_similarity", "\n  return x\nmore", "    return y", 2 * 7 / 16),
        ("edit_similarity", "kitten", "sitting", 2 * 4 / 13),
        ("edit_similarity", "", "", 1.0),
        ("edit_similarity", "", "x", 0.0),
    ],
)
def test_by_hand(metric: str, output: str, answer: str, expected: float):
    assert score(metric, output, [answer]) == pytest.approx(expected)


def test_best_answer_counts():
    assert score("f1", "Stanley Hall", ["G. Stanley Hall", "Stanley Hall"]) == 1.0
    assert score("contains", "jazz, they say", ["a pop ballad", "jazz"]) == 1.0


CLASSES = ("transfer", "transfer fee", "card_lost", "top up")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Transfer fee, or top up", "transfer fee"),  # the longer one at the same place
        ("top up, not transfer fee", "top up"),  # the first one
        (" card lost\nMessage:", "card_lost"),
        ("transfers", None),  # no word of its own
        ("none of these", None),
    ],
)
def test_named_class(output: str, expected: str | None):
    assert named_class(output, CLASSES) == expected
    assert score("classification", output, ["top up"], CLASSES) == float(expected == "top up")


def test_normalization_is_squads():
    assert normalized("An  apple -- 'The Red' one.") == ["apple", "red", "one"]


def test_longest_common_subsequence_against_brute_force():
    def brute(a: str, b: str) -> int:
        for size in range(len(a), 0, -1):
            inside = set(itertools.combinations(b, size))
            if any(part in inside for part in itertools.combinations(a, size)):
                return size
        return 0

    words = ["".join(w) for n in range(5) for w in itertools.product("ab", repeat=n)]
    for a, b in itertools.product(words, words):
        assert longest_common_subsequence(a, b) == brute(a, b), (a, b)


def test_edit_similarity_of_long_lines():
    assert edit_similarity("ab" * 500, "ba" * 500) == pytest.approx(2 * 999 / 2000)


def test_nll_is_no_metric_of_an_output():
    with pytest.raises(ValueError) as error:
        score("nll", "x", ["x"])
    assert str(error.value) == "metric: expected a metric of an output, got 'nll'"
