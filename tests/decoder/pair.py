"""A LazyDecoder and the oracle side by side: every step is taken by both, and compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from helpers import full_attention
from oracle import Oracle
from torch import Tensor

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import PruningSchedule
from lazyllm_ext.state import LazyState

LOGIT_TOLERANCE = 1e-4


def make_oracle(model: Any, schedule: PruningSchedule) -> Oracle:
    return Oracle(model, schedule.resolve(full_attention(model)))


class Pair:
    """One state of a decoder for a batch, and an oracle for each of its sequences.

    Args:
        model: a transformers model.
        schedule: of both.
        batch: number of sequences.
        decoder: one made before, of the same model and schedule.
        fixed: decode in fixed shapes, as on a GPU, where revival is bounded.
    """

    def __init__(
        self,
        model: Any,
        schedule: PruningSchedule,
        batch: int = 1,
        decoder: LazyDecoder | None = None,
        fixed: bool = False,
    ):
        self.decoder = decoder or LazyDecoder.from_model(model, schedule)
        self.decoder.fixed_on_cpu = fixed
        self.oracles = [make_oracle(model, schedule) for _ in range(batch)]
        self.state = self.decoder.new_state(batch, model.lm_head.weight)
        self.boundaries = range(1, len(self.oracles[0].computed))
        self.next_position = [0] * batch
        self.next_token = [5] * batch  # greedy, after the last step that asked for logits
        self.revived_before = [0] * len(self.boundaries)  # by oracles that are no longer here

    @torch.no_grad()
    def step(self, tokens: Sequence[Sequence[int]], asked: int = 1, gap: int = 0) -> Tensor:
        """New tokens of every sequence (none is allowed); the decoder's logits, packed.

        Args:
            tokens: ids, a list for each sequence.
            asked: logits of so many last ones.
            gap: positions that are left out before the new tokens.
        """
        counts = [len(new) for new in tokens]
        positions = []
        for b, count in enumerate(counts):
            first = self.next_position[b] + (gap if count > 0 else 0)
            positions.append(list(range(first, first + count)))
            self.next_position[b] = first + count
        ids = torch.tensor([token for new in tokens for token in new])
        flat = torch.tensor([position for of_sequence in positions for position in of_sequence])
        logits = self.decoder(ids, flat, counts, self.state, asked)

        kept = [min(asked, count) for count in counts]
        assert logits.shape == (sum(kept), self.oracles[0].model.config.vocab_size)
        for b, got in enumerate(logits.split(kept)):
            if counts[b] > 0:
                self._compare_step(b, got, tokens[b], positions[b], asked)
        self.compare_states()
        return logits

    def decode(self, steps: int) -> None:
        """Greedy tokens, each of them compared."""
        for _ in range(steps):
            self.step([[token] for token in self.next_token])

    def crop(self, counts: Sequence[int]) -> None:
        """Remove the newest tokens of each sequence."""
        counts = [min(count, oracle.n) for count, oracle in zip(counts, self.oracles, strict=True)]
        bookkeeping.crop_(self.state, list(counts))
        for b, (count, oracle) in enumerate(zip(counts, self.oracles, strict=True)):
            oracle.crop(count)
            self.next_position[b] = oracle.position[-1] + 1 if oracle.n > 0 else 0
        self.compare_states()

    def reorder(self, order: Sequence[int]) -> None:
        """Go on with sequences order[0], order[1], …, repeats allowed."""
        self.state = bookkeeping.select_sequences(self.state, torch.tensor(order))
        self.revived_before = self.revived()
        self.oracles = [self.oracles[b].fork() for b in order]  # which count from 0 again
        self.next_position = [self.next_position[b] for b in order]
        self.next_token = [self.next_token[b] for b in order]
        self.compare_states()

    def fork(self) -> Pair:
        """A pair that goes on from here by itself, as this one may."""
        twin = copy.copy(self)
        twin.state = bookkeeping.fork_state(self.state, self.decoder.spec)
        twin.oracles = [oracle.fork() for oracle in self.oracles]
        twin.revived_before = self.revived()
        twin.next_position, twin.next_token = list(self.next_position), list(self.next_token)
        twin.compare_states()
        return twin

    def revived(self) -> list[int]:
        """How many tokens the oracles have revived at each boundary."""
        return [
            before + sum(oracle.revived_total[s] for oracle in self.oracles)
            for s, before in zip(self.boundaries, self.revived_before, strict=True)
        ]

    def active(self, b: int) -> list[list[int]]:
        """The decoder's A_1 … A_S of the last step."""
        return [bookkeeping.active(self.state, s, b).tolist() for s in self.boundaries]

    def _compare_step(
        self, b: int, got: Tensor, tokens: Sequence[int], positions: list[int], asked: int
    ) -> None:
        oracle = self.oracles[b]
        expected = oracle.step(tokens, positions, asked, follow=self.active(b))
        assert self.active(b) == oracle.active[1:], (
            f"sequence {b}: A_s; margins {oracle.margin[1:]}"
        )
        assert_near(got, expected, f"sequence {b}: logits", atol=LOGIT_TOLERANCE, rtol=0)
        best = expected[-1].topk(2)
        if best.values[0] - best.values[1] >= 2 * LOGIT_TOLERANCE:
            assert got[-1].argmax() == best.indices[0], f"sequence {b}: token"
        self.next_token[b] = int(got[-1].argmax())

    def compare_states(self) -> None:
        """Sets, importance, positions, and how many tokens were revived."""
        assert bookkeeping.revived(self.state) == self.revived(), "revived"
        for b, oracle in enumerate(self.oracles):
            assert self.state.host_length[b] == oracle.n
            for s, passed in enumerate(oracle.computed):
                got = bookkeeping.computed(self.state, s, b).tolist()
                assert got == sorted(passed), f"sequence {b}: C_{s}"
            for s in self.boundaries:
                got = bookkeeping.waiting(self.state, s, b).tolist()
                assert got == sorted(oracle.aux[s]), f"sequence {b}: waiting at boundary {s}"
                assert_near(
                    self.state.importance[s - 1][b, : oracle.n],
                    oracle.importance[s],
                    f"sequence {b}: I_{s}",
                    atol=1e-6,
                )
            assert self.state.position[0][b, : oracle.n].tolist() == oracle.position

    def compare_stores(self) -> None:
        """Right rows in the right slots: keys, values, waiting hidden states."""
        for b in range(len(self.oracles)):
            self._compare_stores(b)

    def _compare_stores(self, b: int) -> None:
        oracle = self.oracles[b]
        for s, layers in enumerate(self.decoder.spec.stage_layers):
            tokens = sorted(oracle.computed[s])
            slots = self.state.slot[s][b, tokens]
            for layer in layers if tokens else ():
                for store, part in ((self.state.keys[layer], 0), (self.state.values[layer], 1)):
                    expected = torch.stack([oracle.stored[layer][j][part] for j in tokens])
                    assert_near(store[slots], expected, f"sequence {b}: stored in layer {layer}")
        for s in self.boundaries:
            if oracle.aux[s]:
                tokens = sorted(oracle.aux[s])
                got = self.state.aux[s - 1][self.state.aux_slot[s - 1][b, tokens]]
                expected = torch.stack([oracle.aux[s][j] for j in tokens])
                assert_near(got, expected, f"sequence {b}: waiting at boundary {s}")


def assert_near(
    got: Tensor, expected: Tensor, what: str, atol: float = 1e-4, rtol: float = 1e-4
) -> None:
    torch.testing.assert_close(
        got, expected, atol=atol, rtol=rtol, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


@torch.no_grad()
def advance(
    decoder: LazyDecoder,
    state: LazyState,
    ids: list[list[int]],
    begin: list[int],
    counts: tuple[int, ...],
    asked: int = 1,
) -> Tensor:
    """Bring the next counts[b] tokens of every sequence, and move `begin` over them."""
    spans = [range(first, first + count) for first, count in zip(begin, counts, strict=True)]
    flat = torch.tensor(
        [of_one[place] for of_one, span in zip(ids, spans, strict=True) for place in span]
    )
    positions = torch.tensor([place for span in spans for place in span])
    begin[:] = [span.stop for span in spans]
    return decoder(flat, positions, list(counts), state, asked)
