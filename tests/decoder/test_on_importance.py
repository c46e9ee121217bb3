"""`LazyDecoder.on_importance`: other scores at a boundary."""

from __future__ import annotations

import torch
from helpers import random_ids, shared_model
from torch import Tensor

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import Boundary, PruningSchedule

SCHEDULE = PruningSchedule((Boundary(layer=1, keep=0.5), Boundary(layer=3, keep=0.2)))
TOKENS = 20


def kept(decoder: LazyDecoder) -> list[list[int]]:
    """A_1 and A_2 of a prefill."""
    ids = torch.tensor(random_ids(TOKENS, seed=5))
    with torch.no_grad():
        state = decoder.new_state(1, torch.zeros(1))
        decoder(ids, torch.arange(TOKENS), [TOKENS], state)
    return [bookkeeping.active(state, boundary, 0).tolist() for boundary in (1, 2)]


def test_what_it_returns_is_what_selects() -> None:
    decoder = LazyDecoder.from_model(shared_model("llama"), SCHEDULE)
    seen: list[tuple[int, int]] = []

    def early_first(boundary: int, scored: Tensor) -> Tensor:
        seen.append((boundary, int((scored > 0).sum())))
        return torch.arange(scored.numel(), 0, -1).to(scored)

    plain = kept(decoder)
    decoder.on_importance = early_first
    # The last token is protected; the others are the first ones.
    assert kept(decoder) == [[*range(9), 19], [0, 1, 2, 19]]
    assert seen == [(0, 20), (1, 10)]
    decoder.on_importance = lambda boundary, scored: scored
    assert kept(decoder) == plain
