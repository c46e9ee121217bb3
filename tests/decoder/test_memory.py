"""What a state holds: the bytes of its stores and tables, beside what the sets need."""

from __future__ import annotations

import pytest
import torch
from helpers import random_ids, shared_model

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import Boundary, PruningSchedule

from .pair import Pair, advance

REVIVE = pytest.mark.parametrize(
    ("max_revive", "fixed"),
    [(None, False), (0, False), (1, False), (0, True), (1, True)],
)
PRUNED = (Boundary(layer=1, keep=0.5), Boundary(layer=3, keep=0.2))


class Conversation:
    """A batch that goes on with random tokens, and what its state holds.

    Args:
        batch: number of sequences.
        max_revive, fixed: as in `REVIVE`.
    """

    def __init__(self, batch: int, max_revive: int | None = None, fixed: bool = False):
        model = shared_model("llama")
        schedule = PruningSchedule(PRUNED, window=2, max_revive=max_revive)
        self.decoder = LazyDecoder.from_model(model, schedule)
        self.decoder.fixed_on_cpu = fixed
        self.state = self.decoder.new_state(batch, model.lm_head.weight)
        self.ids = [random_ids(900, seed=3 + b) for b in range(batch)]
        self.begin = [0] * batch

    def advance(self, *counts: int) -> None:
        advance(self.decoder, self.state, self.ids, self.begin, counts)

    def crop(self, *counts: int) -> None:
        bookkeeping.crop_(self.state, list(counts))
        self.begin = list(self.state.host_length)

    def select(self, order: list[int]) -> None:
        self.state = bookkeeping.select_sequences(self.state, torch.tensor(order))
        self.ids, self.begin = [self.ids[b] for b in order], list(self.state.host_length)

    def kv(self) -> float:
        """Bytes held for keys and values, in those that the sets need (shared ones once)."""
        layer, spec = self.decoder.layers[0], self.decoder.spec
        row = 2 * 4 * layer.num_kv_heads * layer.head_dim  # float32
        rows = map(_named, self.state.slot)
        needed = sum(
            row * count * len(layers) for count, layers in zip(rows, spec.stage_layers, strict=True)
        )
        return bookkeeping.kv_nbytes(self.state) / needed

    def aux(self) -> float:
        """The same of waiting hidden states."""
        needed = 4 * self.decoder.spec.hidden_size * sum(map(_named, self.state.aux_slot))
        return bookkeeping.aux_nbytes(self.state) / needed


def _named(table: torch.Tensor) -> int:
    """How many rows of its store a table [B, cap] names."""
    return torch.unique(table[table >= 0]).numel()


@REVIVE
def test_bytes_stay_close_to_what_the_sets_need(max_revive: int | None, fixed: bool) -> None:
    run = Conversation(2, max_revive, fixed)
    for counts in [(600, 450), *[(1, 1)] * 100, (60, 20), *[(1, 1)] * 30]:
        run.advance(*counts)
        assert 1 <= run.kv() <= 1.15
        # In fixed shapes what revives is given back when the store is full.
        assert 1 <= run.aux() <= (1.5 if fixed and max_revive else 1.15)


@REVIVE
def test_after_many_crops(max_revive: int | None, fixed: bool) -> None:
    """Drafts that are taken back, and repeated questions to one document."""
    run = Conversation(1, max_revive, fixed)
    run.advance(600)
    for _ in range(25):
        run.advance(30)
        assert 1 <= run.kv() <= 1.2
        assert 1 <= run.aux() <= 1.15
        run.crop(30)


@REVIVE
def test_waiting_tokens_that_are_cropped(max_revive: int | None, fixed: bool) -> None:
    """Their hidden states are given back at the next step, their keys and values by growing."""
    run = Conversation(1, max_revive, fixed)
    run.advance(600)
    run.crop(500)
    run.advance(1)
    assert 1 <= run.aux() <= 1.1
    run.advance(300)
    assert 1 <= run.kv() <= 1.2


@REVIVE
@pytest.mark.parametrize("order", [[3], [3] * 8], ids=["one", "beams"])
def test_sequences_that_are_dropped(max_revive: int | None, fixed: bool, order: list[int]) -> None:
    """One of eight goes on, alone or as eight that share what is there."""
    run = Conversation(8, max_revive, fixed)
    run.advance(*[100] * 8)
    run.select(order)
    run.advance(*[1] * len(order))
    assert 1 <= run.aux() <= 1.5  # room for fixed shapes in it
    run.advance(*[64 // len(order)] * len(order))  # more than there is room for
    assert 1 <= run.kv() <= 1.3  # 16 spare rows are much here


def test_given_back_as_tokens_revive() -> None:
    """Below min_tokens everything is active again, and nothing waits."""
    model = shared_model("llama")
    pair = Pair(model, PruningSchedule(PRUNED, min_tokens=50))
    pair.step([random_ids(60, seed=5)])
    assert bookkeeping.aux_nbytes(pair.state) > 0
    pair.crop([20])
    pair.decode(1)
    assert bookkeeping.waiting_per_boundary(pair.state) == [[0], [0]]
    assert bookkeeping.aux_nbytes(pair.state) == 0


def test_room_for_steps_is_beside_what_waits_now() -> None:
    """What fixed shapes have revived, and nobody has counted yet, is given back first."""
    run = Conversation(1, max_revive=1, fixed=True)
    run.advance(600)
    for _ in range(40):
        run.advance(1)
    bookkeeping.reserve_steps_(run.state, run.decoder.spec, 50, 1)
    for boundary, store in enumerate(run.state.aux):
        waiting, room = _named(run.state.aux_slot[boundary]), 50 * (1 + boundary)
        assert waiting + room <= len(store) <= waiting + waiting // 16 + room


def test_after_a_first_prefill() -> None:
    """The Aux Cache holds exactly the rows that wait, not one more."""
    model = shared_model("llama")
    pair = Pair(model, PruningSchedule(PRUNED))
    pair.step([random_ids(40, seed=6)])
    hidden_bytes = 4 * model.config.hidden_size
    waiting = bookkeeping.waiting_per_boundary(pair.state)
    assert waiting == [[20], [12]]
    assert bookkeeping.aux_nbytes(pair.state) == 32 * hidden_bytes


def test_tables() -> None:
    """Of 64 tokens each: int64 positions and slots, float32 importance."""
    run = Conversation(2)
    run.advance(60, 20)
    stages, boundaries = 3, 2
    of_token = 8 * (1 + stages + boundaries) + 4 * boundaries
    assert bookkeeping.table_nbytes(run.state) == 2 * 64 * of_token
