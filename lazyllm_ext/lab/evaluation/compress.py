"""Prompt compression after Selective Context (Li et al. 2023, arXiv 2310.06201).

A small language model, here the model under test itself, gives every token its self-information
-log p. A word's is the mean of its tokens'. The words with the least are taken out of the text,
and the model gets the text that is left. (The authors' code merges noun phrases with spaCy; here
the lexical unit is a word, which needs no other model.)
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right

import torch
from torch import Tensor

from lazyllm_ext.lab.tools.cost import prefill_operations

from .sessions import Kept, Reduction
from .subject import Prompt, Subject
from .tasks import Item

_PROTECTED_WORDS = 32


def compress(subject: Subject, item: Item, prompt: Prompt, keep: float) -> Reduction:
    """The prompt's text without its least surprising words.

    From the item's question on, or else from the last line that is not blank (its last 32 words),
    the text stays. That counts towards what is kept.
    """
    text = item.prompt
    plain = subject.tokens(text)
    surprise = subject.surprise(plain.ids)
    words = split_words(text)
    owner = owners(words, plain.spans)
    chosen = choose_words(
        surprise, owner, len(words), first_protected(item, words), math.ceil(keep * len(owner))
    )
    shorter = subject.encode(item, join_words(words, chosen))
    n, k = prompt.ids.numel(), shorter.ids.numel()
    # The compressing pass computes every layer and the logits of all tokens; it is not a part of
    # what is computed for the answer, and so counts among the operations only.
    scored = plain.ids.numel()
    pass_ = prefill_operations(subject.dense_decoder, scored, last_rows=scored)
    return Reduction(
        ids=shorter.ids,
        positions=torch.arange(k, device=shorter.ids.device),
        following=k,
        kept=Kept(-1, _kept_tokens(prompt, text, words, chosen)),
        operations=pass_.total + pass_.lm_head * (scored - 1),
        computed_percent=100.0 * k / n,
    )


def split_words(text: str) -> list[str]:
    """Words, each with the white space after it (the first with that before it, too)."""
    return re.findall(r"^\s*\S*\s*|\S+\s*", text)


def owners(words: list[str], spans: tuple[tuple[int, int], ...]) -> list[int]:
    """For every token the word that its last character is in."""
    begins = [0]
    for word in words:
        begins.append(begins[-1] + len(word))
    return [max(0, bisect_right(begins, max(begin, end - 1)) - 1) for begin, end in spans]


def first_protected(item: Item, words: list[str]) -> int:
    """The first word of the question, or else of the last line that is not blank.

    Of a long line, as books have them, the last words only.
    """
    text = item.prompt
    begin = text.rfind(item.question) if item.question else -1
    if begin < 0:
        line = text.rstrip().rfind("\n") + 1
        begin = max(line, len("".join(words[:-_PROTECTED_WORDS])))
    end = 0
    for number, word in enumerate(words):
        end += len(word)
        if end > begin:
            return number
    return len(words)


def choose_words(
    surprise: Tensor, owner: list[int], words: int, protected: int, budget: int
) -> list[bool]:
    """Which words stay: those from `protected` on, then the most surprising that fit.

    Args:
        surprise: [tokens], nats.
        owner: each token's word.
        words: how many there are.
        budget: most tokens; exceeded by protected words only.
    """
    of = torch.tensor(owner)
    tokens = torch.bincount(of, minlength=words)
    # The first token's is infinite: its word stays.
    total = torch.zeros(words, dtype=torch.float64).index_add_(0, of, surprise.double())
    mean = total / tokens.clamp(min=1)
    chosen = [number >= protected for number in range(words)]
    left = budget - int(tokens[protected:].sum())
    for number in torch.argsort(mean[:protected], descending=True, stable=True).tolist():
        if tokens[number] <= left:
            chosen[number] = True
            left -= int(tokens[number])
    return chosen


def join_words(words: list[str], chosen: list[bool]) -> str:
    """The text of the chosen words. A line break survives the word before it."""
    parts: list[str] = []
    for word, stays in zip(words, chosen, strict=True):
        if stays:
            parts.append(word)
        elif "\n" in word[len(word.rstrip()) :] and parts:
            parts[-1] = parts[-1].rstrip(" ")
            if not parts[-1].endswith("\n"):
                parts.append("\n")
    return "".join(parts)


def _kept_tokens(prompt: Prompt, text: str, words: list[str], chosen: list[bool]) -> list[int]:
    """Tokens of the whole prompt that are not of a word that was taken out."""
    begin = max(0, prompt.text.find(text))
    inside = [
        (start - begin, end - begin) for start, end in prompt.spans
    ]  # places in `text`; below 0 or past its end for the template
    owner = owners(words, tuple(inside))
    return [
        token
        for token, (start, end) in enumerate(inside)
        if end <= 0 or start >= len(text) or chosen[owner[token]]
    ]
