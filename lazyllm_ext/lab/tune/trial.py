"""One schedule on one prompt: how near it stays to the dense model, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.lab.tools.cost import active_sets, prefill_operations
from lazyllm_ext.lab.tools.dense import kl_divergence
from lazyllm_ext.schedule import PruningSchedule

from .candidates import tail
from .reference import Reference


@dataclass(frozen=True)
class Outcome:
    """A schedule on one prompt, or the mean over several."""

    # KL(dense ‖ this) in nats, mean over the tokens of the dense model's continuation, which the
    # schedule is made to say.
    kl: float
    agreement: float  # part of these tokens that it would have said itself
    first: float  # whether the first one is (1 or 0)
    operations: float  # of the prefill
    dense_operations: float  # of the dense one

    @property
    def ratio(self) -> float:
        """How many times fewer operations the prefill takes."""
        return self.dense_operations / self.operations


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean over prompts; at least one."""
    count = len(outcomes)
    names = ("kl", "agreement", "first", "operations", "dense_operations")
    return Outcome(*(sum(getattr(o, name) for o in outcomes) / count for name in names))


@torch.no_grad()
def run(dense: LazyDecoder, schedule: PruningSchedule, reference: Reference) -> Outcome:
    """Run a schedule with at least one boundary.

    Nothing is computed before its first boundary: `reference` holds what enters that layer, for the
    prompt and for its continuation. From there on it is the decoder as it always runs, the
    continuation token by token.

    Args:
        dense: a decoder of the whole model, for its layers.
        schedule: boundaries by layer.
        reference: with what enters the layer of the first boundary.
    """
    first = schedule.boundaries[0].layer
    assert first is not None  # candidates name layers
    decoder = tail(dense, schedule, first)
    weight = dense.norm.weight
    assert isinstance(weight, Tensor)
    hidden = reference.hidden[first].to(weight.device)
    count = reference.prompt_tokens
    positions = torch.arange(hidden.size(0), device=hidden.device)
    state = decoder.new_state(1, hidden)
    logits = [decoder.step(hidden[:count], positions[:count], [count], state)]
    active = active_sets(decoder, state)
    for place in range(count, count + len(reference.tokens) - 1):
        new = slice(place, place + 1)
        logits.append(decoder.step(hidden[new], positions[new], [1], state))
    got = torch.cat(logits)
    kl = float(kl_divergence(reference.log_probs, got).mean())
    same = got.argmax(-1).cpu() == torch.tensor(reference.tokens)
    after = prefill_operations(decoder, count, active)
    whole = tail(dense, PruningSchedule(), 0)
    before = tail(dense, PruningSchedule(), first)
    spared = prefill_operations(whole, count).total - prefill_operations(before, count).total
    return Outcome(
        kl=max(0.0, kl),  # rounding may leave it below 0
        agreement=float(same.float().mean()),
        first=float(same[0]),
        operations=after.total + spared,
        dense_operations=prefill_operations(whole, count).total,
    )
