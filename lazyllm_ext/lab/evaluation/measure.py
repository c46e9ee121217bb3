"""One item under one contender: its answer, its times, its work, and how near it is to dense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lazyllm_ext.lab.tools.clock import Clock
from lazyllm_ext.lab.tools.dense import (
    DenseContinuation,
    greedy,
    kl_divergence,
    log_probabilities,
    nats,
)

from .metrics import score
from .sessions import Kept, Session
from .subject import Subject
from .tasks import Item

REFERENCE_TOKENS = 32
PROFILE_BINS = 50


@dataclass(frozen=True)
class Answer:
    """A greedy generation."""

    tokens: list[int]  # the new tokens; the last one may end the answer
    seconds: list[float]  # from the start of the prefill to each token
    logits: list[Tensor]  # [vocab] each, of the first ones, as many as were asked for


@dataclass(frozen=True)
class Measured:
    """One run of one item under one contender."""

    score: float  # of the item's metric, 0 … 1; for nll exp(-nll), the mean probability of a token
    # The scores of `also_metrics`; for nll its mean negative log-likelihood, in nats.
    also: dict[str, float]
    output: str  # the answer's text
    new_tokens: int  # of the answer, 0 for nll
    ttft_seconds: float  # from the prompt's tokens to the first new one
    decode_seconds: float  # from the first new token to the last
    computed_percent: float  # mean over layers of the prompt's tokens computed, at the end
    operations: int  # of the prefill
    same_first_token: bool  # as the dense model's
    kl: float  # mean over the dense model's own first 32 tokens of KL(dense ‖ this), nats
    kept: list[Kept]  # tokens that the prefill kept, one entry for each time that some were dropped


def measure(
    subject: Subject, session: Session, item: Item, reference: DenseContinuation | None
) -> tuple[Measured, DenseContinuation]:
    """Run an item once.

    Args:
        session: not prefilled yet.
        reference: of the dense model; None where this is the dense model, which makes it then.

    Returns:
        What was measured, and the reference.
    """
    clock = Clock()
    logits = session.prefill()
    first = int(logits.argmax())  # waits for the device
    ttft = clock()
    operations, kept = session.operations(), session.kept()
    if reference is None:
        other = session.fork() if item.metric == "nll" else session
        most = max(item.max_new_tokens, REFERENCE_TOKENS)
        answer = generate(other, logits, most, subject.stop, ttft, REFERENCE_TOKENS)
        reference = reference_of(answer)
        kl = 0.0
        most = item.max_new_tokens  # as if it had been stopped after so many
        answer = Answer(answer.tokens[:most], answer.seconds[:most], answer.logits)
    else:
        kl = divergence(session.fork(), logits, reference)
        answer = generate(session, logits, item.max_new_tokens, subject.stop, ttft)
    if item.metric == "nll":
        nll = negative_log_likelihood(subject, session, logits, item.answers[0])
        text, points, also = "", math.exp(-nll), {"nll": nll}
    else:
        text = subject.decode(answer.tokens)
        points = score(item.metric, text, item.answers, item.classes)
        also = {name: score(name, text, item.answers, item.classes) for name in item.also_metrics}
    measured = Measured(
        score=points,
        also=also,
        output=text,
        new_tokens=len(answer.tokens),
        ttft_seconds=ttft,
        decode_seconds=answer.seconds[-1] - ttft if answer.tokens else 0.0,
        computed_percent=session.computed_percent(),
        operations=operations,
        same_first_token=first == reference.tokens[0],
        kl=kl,
        kept=kept,
    )
    return measured, reference


def generate(
    session: Session,
    logits: Tensor,
    most: int,
    stop: frozenset[int],
    ttft: float = 0.0,
    keep_logits: int = 0,
) -> Answer:
    """Greedy search after a prefill, see `greedy`; logits of the first `keep_logits` are kept."""
    answer = Answer([], [], [])
    clock = Clock()
    for token, chosen_from in greedy(logits, session.step, most, stop):
        answer.seconds.append(ttft + (clock() if answer.tokens else 0.0))
        answer.tokens.append(token)
        if len(answer.logits) < keep_logits:
            answer.logits.append(chosen_from)
    return answer


def make_reference(subject: Subject, session: Session) -> DenseContinuation:
    """The dense model's own continuation, from a session that is not prefilled yet."""
    logits = session.prefill()
    answer = generate(session, logits, REFERENCE_TOKENS, subject.stop, keep_logits=REFERENCE_TOKENS)
    return reference_of(answer)


def reference_of(answer: Answer) -> DenseContinuation:
    """The first tokens of a dense generation, at most 32, with their distributions."""
    count = len(answer.logits)
    return DenseContinuation(answer.tokens[:count], log_probabilities(answer.logits))


def divergence(session: Session, logits: Tensor, reference: DenseContinuation) -> float:
    """Mean KL(dense ‖ this) in nats, when the session is made to say what the dense model says.

    Args:
        session: prefilled, with `logits` [vocab]; it is used up.
    """
    total = 0.0
    for first, got in forced(session, logits, reference.tokens):
        expected = reference.log_probs[first : first + got.size(0)]
        total += float(kl_divergence(expected, got).sum())
    return max(0.0, total / len(reference.tokens))  # rounding may leave it below 0


def negative_log_likelihood(
    subject: Subject, session: Session, logits: Tensor, answer: str
) -> float:
    """Mean -log p of the answer's tokens, nats; it uses the prefilled session up."""
    ids = subject.tokens(answer).ids
    total = 0.0
    for first, got in forced(session, logits, ids.tolist()):
        total += float(nats(got, ids[first : first + got.size(0)]).sum())
    return total / ids.numel()


def forced(session: Session, logits: Tensor, tokens: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Logits [T, vocab] for known tokens, a few at a time, each with the place of the first."""
    yield 0, logits[None]
    for begin in range(0, len(tokens) - 1, session.stride):
        fed = tokens[begin : min(begin + session.stride, len(tokens) - 1)]
        yield begin + 1, session.step(torch.tensor(fed, device=logits.device))


def profile(kept: list[Kept], tokens: int) -> list[dict[str, Any]]:
    """Where in the prompt tokens were kept: for each layer the share in each of 50 equal parts."""
    edges = torch.linspace(0, tokens, PROFILE_BINS + 1).round().long()
    sizes = (edges[1:] - edges[:-1]).clamp(min=1)
    profiles = []
    for entry in kept:
        counts = torch.bincount(torch.tensor(entry.tokens, dtype=torch.int64), minlength=tokens)
        below = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        shares = (below[edges[1:]] - below[edges[:-1]]) / sizes
        profiles.append({"layer": entry.layer, "shares": [round(v, 4) for v in shares.tolist()]})
    return profiles
