"""The dense model: how it goes on after a prompt, how far others are from it, and parts of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import ResolvedSchedule


@dataclass(frozen=True)
class DenseContinuation:
    """What the dense model goes on with after a prompt, greedily."""

    tokens: list[int]  # the last one may end the answer
    log_probs: Tensor  # [tokens, vocab] float32, of each of them given all before


def greedy(
    logits: Tensor, step: Callable[[Tensor], Tensor], most: int, stop: Collection[int]
) -> Iterator[tuple[int, Tensor]]:
    """Greedy search after a prefill: each token, and the logits [vocab] that it was taken from.

    Args:
        logits: [vocab] that the prefill gave.
        step: computes the next token: ids [1] -> logits [1, vocab].
        most: tokens, the first included.
        stop: tokens that end the answer.
    """
    for number in range(1, most + 1):
        token = logits.argmax()
        chosen = int(token)  # waits for the device
        yield chosen, logits
        if chosen in stop or number == most:
            break
        logits = step(token.view(1))[-1]


def log_probabilities(logits: list[Tensor]) -> Tensor:
    """Logits [vocab] of each token -> log p [tokens, vocab] float32."""
    return torch.stack(logits).float().log_softmax(-1)


def nats(logits: Tensor, ids: Tensor) -> Tensor:
    """logits [T, vocab] and the tokens that came, ids [T] -> -log p [T] float32."""
    return torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")


def kl_divergence(expected: Tensor, logits: Tensor) -> Tensor:
    """KL(expected ‖ softmax(logits)), both [T, vocab], `expected` as log p -> [T] float32, nats."""
    return (expected.exp() * (expected - logits.float().log_softmax(-1))).sum(-1)


def full_attention(decoder: LazyDecoder) -> list[bool]:
    """For each layer whether it attends to all that comes before, as one with a boundary must."""
    layers: Any = decoder.layers  # plain modules to a type checker
    return [layer.window == 0 for layer in layers]


def some_layers(
    whole: LazyDecoder, layers: slice, schedule: ResolvedSchedule, embeds: bool
) -> LazyDecoder:
    """Some layers of a decoder as a decoder of its own, on the same weights.

    Args:
        schedule: its layers are counted from the first one of these.
        embeds: whether a step takes embedded tokens, as the whole decoder's does; else it takes
            what enters the first of these layers.
    """
    source: Any = whole
    embedding: dict[str, Any] = {"embed": nn.Identity()}
    if embeds:
        embedding = {"embed": source.embed, "embed_scale": source.embed_scale}
        embedding["position_embed"] = source.position_embed if source.learns_positions else None
    return LazyDecoder(
        layers=list(source.layers)[layers],
        norm=source.norm,
        lm_head=source.lm_head.linear,
        ropes=list(source.ropes),
        schedule=schedule,
        hidden_size=source.spec.hidden_size,
        logit_scale=source.logit_scale,
        logit_softcap=source.logit_softcap,
        **embedding,
    )
