"""Metrics: an output and the accepted answers -> a score between 0 and 1, the higher the better."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: str, output: str, answers: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The best score over the answers.

    Args:
        metric: one of METRICS but nll, which is not taken from an output.
        classes: for classification and classes_first_line.

    Raises:
        ValueError: another metric.
    """
    if metric == "classification":
        return float(named_class(output, classes) in answers)
    if metric == "classes_first_line":
        return max(share_of_classes(output, answer, classes) for answer in answers)
    compare = _COMPARISONS.get(metric)
    if compare is None:
        raise ValueError(f"metric: expected a metric of an output, got {metric!r}")
    return max(compare(output, answer) for answer in answers)


def normalized(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, without punctuation and articles."""
    words = text.lower().translate(_PUNCTUATION).split()
    return [word for word in words if word not in ("a", "an", "the")]


def f1(output: str, answer: str) -> float:
    """Harmonic mean of precision and recall of SQuAD's normalized words."""
    got, expected = normalized(output), normalized(answer)
    if not got or not expected:
        return float(got == expected)
    return _harmonic((Counter(got) & Counter(expected)).total(), len(got), len(expected))


def contains(output: str, answer: str) -> float:
    """1 if the answer occurs in the output, whatever the case and the kind of white space."""
    return float(_plain(answer) in _plain(output))


def named_class(output: str, classes: Sequence[str]) -> str | None:
    """The class that the output names first, as a whole word; the longest of those at one place.

    Case does not matter, nor does an underscore in place of a space.
    """
    text = _plain(output.replace("_", " "))
    found = []
    for name in classes:
        words = re.escape(_plain(name.replace("_", " ")))
        match = re.search(rf"(?<!\w){words}(?!\w)", text)
        if match:
            found.append((match.start(), -len(name), name))
    return min(found)[2] if found else None


def rouge_l(output: str, answer: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (letters and digits, lower case)."""
    got, expected = (re.findall(r"[^\W_]+", text.lower()) for text in (output, answer))
    return _harmonic(longest_common_subsequence(got, expected), len(got), len(expected))


def edit_similarity(output: str, answer: str) -> float:
    """2 · LCS / (both lengths) of the first lines that are not blank, both ends stripped.

    1 minus the normalized number of insertions and deletions that make one of the other.
    """
    got, expected = first_line(output), first_line(answer)
    if not got and not expected:
        return 1.0
    return _harmonic(longest_common_subsequence(got, expected), len(got), len(expected))


def first_line(text: str) -> str:
    """The first line that is not blank, both ends stripped; empty where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def share_of_classes(output: str, answer: str, classes: Sequence[str]) -> float:
    """LongBench's accuracy: 1 / the number of classes in the first line, if the answer is one.

    Classes are looked for anywhere in the line, as they are written. One that is a part of the
    answer's name does not count.
    """
    line = first_line(output)
    found = [name for name in classes if name in line and (name == answer or name not in answer)]
    return 1.0 / len(found) if answer in found else 0.0


def share_of_numbers(output: str, answer: str) -> float:
    """LongBench's accuracy of counting and retrieval: which part of the numbers is the right one.

    The right one is the first in the answer: `7` or `Paragraph 7`.
    """
    expected = re.search(r"\d+", answer)
    numbers = re.findall(r"\d+", output)
    if expected is None or not numbers:
        return 0.0
    return numbers.count(expected.group()) / len(numbers)


def code_line(output: str, answer: str) -> float:
    """2 · LCS / (both lengths) of the first line that is no comment and the answer, indented.

    As in LongBench a line with a back quote, `#` or `//` anywhere in it is taken for a comment.
    """
    lines = (line for line in output.split("\n") if line.strip())
    line = next((line for line in lines if not re.search("`|#|//", line)), "")
    return _harmonic(longest_common_subsequence(line, answer), len(line), len(answer))


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004): a bit for each place in `a`, one addition for each entry of `b`.
    """
    places: dict[Hashable, int] = {}
    for place, entry in enumerate(a):
        places[entry] = places.get(entry, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every  # a 0 where the longest subsequence grows
    for entry in b:
        both = row & places.get(entry, 0)
        row = (row + both | row - both) & every
    return len(a) - row.bit_count()


def _harmonic(common: int, got: int, expected: int) -> float:
    """F1 from counts: 2 · common / (got + expected)."""
    return 2.0 * common / (got + expected) if common else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


_COMPARISONS = {
    "f1": f1,
    "contains": contains,
    "rougeL": rouge_l,
    "edit_similarity": edit_similarity,
    "f1_first_line": lambda output, answer: f1(first_line(output), answer),
    "rougeL_first_line": lambda output, answer: rouge_l(first_line(output), answer),
    "code_line": code_line,
    "numbers": share_of_numbers,
}
WITH_CLASSES = ("classification", "classes_first_line")

# All that an item may name. Those with classes need them as well, and nll the model.
METRICS = (*_COMPARISONS, *WITH_CLASSES, "nll")
