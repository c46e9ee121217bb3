"""What holds always, whatever the schedule, as properties of the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import MODELS, boundary_layers, random_ids, shared_model, transformers_logits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import Boundary, PruningSchedule

from .pair import LOGIT_TOLERANCE, Pair, advance
from .plans import Decode, Plan, Turn, examples, plans

REVIVE = pytest.mark.parametrize(
    ("max_revive", "fixed"),
    [(None, False), (0, False), (1, False), (0, True), (1, True)],
)
PRUNED = (Boundary(layer=1, keep=0.5), Boundary(layer=3, keep=0.2))


@contextmanager
def rows_counted(model: Any) -> Iterator[dict[str, list[int]]]:
    """How many rows enter each layer's key, value and output projections and its MLP."""
    counts: dict[str, list[int]] = {}
    hooks = []
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        parts = {
            "k": attention.k_proj,
            "v": attention.v_proj,
            "o": attention.o_proj,
            "mlp": layer.mlp,
        }
        for name, part in parts.items():
            counts.setdefault(name, []).append(0)

            def count(module: Any, args: Any, name: str = name, number: int = number) -> None:
                counts[name][number] += args[0].shape[:-1].numel()

            hooks.append(part.register_forward_pre_hook(count))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def steps_of_the_decoder(pair: Pair, wrapped: Callable[..., Any]) -> Iterator[None]:
    """Run `wrapped(step, *arguments)` in place of the decoder's step, and not the oracle's."""
    plain = pair.decoder.forward
    pair.decoder.forward = lambda *arguments: wrapped(plain, *arguments)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del pair.decoder.forward


class TestAtMostOnce:
    @examples(0.5)
    @given(plans(batch=st.integers(1, 3)))
    def test_every_row_of_a_layer(self, plan: Plan) -> None:
        """Keys, values and the rest of a layer: for each token once, and only where it got.

        In packed rows, since fixed shapes have rows that are no token's.
        """
        model = shared_model(plan.model)
        pair = Pair(model, plan.schedule, plan.batch)
        total = {name: [0] * len(pair.decoder.layers) for name in ("k", "v", "o", "mlp")}

        def counted(step: Callable[..., Tensor], *arguments: Any) -> Tensor:
            with rows_counted(model) as counts:
                logits = step(*arguments)
            for name, layers in counts.items():
                total[name] = [sum(both) for both in zip(total[name], layers, strict=True)]
            return logits

        with steps_of_the_decoder(pair, counted):
            plan.run(pair)
        rest = [sum(rows) for rows in zip(*(o.rows_computed for o in pair.oracles), strict=True)]
        assert total["o"] == total["mlp"] == rest
        stored = [sum(rows) for rows in zip(*(o.rows_stored for o in pair.oracles), strict=True)]
        assert total["k"] == total["v"] == stored

    @examples(0.5)
    @given(plans(batch=st.integers(1, 3)))
    def test_what_is_stored_stays(self, plan: Plan) -> None:
        """A token's key and value in a layer never change, whoever is revived, moved or cropped."""
        pair = Pair(shared_model(plan.model), plan.schedule, plan.batch, fixed=plan.fixed)
        before: dict[tuple[int, int], dict[int, Tensor]] = {}

        def watched(step: Callable[..., Tensor], *arguments: Any) -> Tensor:
            for b in range(plan.batch):
                for layer in range(len(pair.decoder.layers)):
                    before[b, layer] = stored_rows(pair, b, layer)
            logits = step(*arguments)
            for (b, layer), old in before.items():
                now = stored_rows(pair, b, layer)
                assert all(torch.equal(old[token], now[token]) for token in old)
            return logits

        with steps_of_the_decoder(pair, watched):
            plan.run(pair)

    @pytest.mark.parametrize("max_revive", [0, 1, 2])
    def test_fixed_shapes_of_a_bounded_decoding_step(self, max_revive: int) -> None:
        """After boundary s, batch · (1 + s · max_revive) rows, whatever is revived."""
        model = shared_model("llama")
        pair = Pair(model, PruningSchedule(PRUNED, max_revive=max_revive), batch=2, fixed=True)
        pair.step([random_ids(30, seed=1), random_ids(21, seed=2)])

        def counted(step: Callable[..., Tensor], *arguments: Any) -> Tensor:
            with rows_counted(model) as counts:
                logits = step(*arguments)
            one, two, three = 2, 2 * (1 + max_revive), 2 * (1 + 2 * max_revive)
            assert counts["k"] == [one, one, two, two, three]
            assert counts["mlp"] == [one, two, two, three, 2]
            return logits

        with steps_of_the_decoder(pair, counted):
            pair.decode(12)


def stored_rows(pair: Pair, b: int, layer: int) -> dict[int, Tensor]:
    """Token -> its key and value in a layer, [2, key heads, head_dim]."""
    stages = pair.decoder.spec.stage_layers
    stage = next(s for s, layers in enumerate(stages) if layer in layers)
    tokens = bookkeeping.computed(pair.state, stage, b)
    slots = pair.state.slot[stage][b, tokens]
    rows = torch.stack([pair.state.keys[layer][slots], pair.state.values[layer][slots]], dim=1)
    return dict(zip(tokens.tolist(), rows, strict=True))


class TestKeepAllIsTheModel:
    """With keep = 1 the logits are transformers'."""

    @REVIVE
    @pytest.mark.parametrize("name", MODELS)
    def test_prefill_turns_decoding_and_crop(
        self, name: str, max_revive: int | None, fixed: bool
    ) -> None:
        model = shared_model(name)
        boundaries = tuple(Boundary(layer=layer, keep=1.0) for layer in boundary_layers(model))
        schedule = PruningSchedule(boundaries, window=2, pool=3, max_revive=max_revive)
        decoder = LazyDecoder.from_model(model, schedule)
        decoder.fixed_on_cpu = fixed
        state = decoder.new_state(2, model.lm_head.weight)
        ids = [random_ids(34, seed=1), random_ids(28, seed=2)]
        expected = [transformers_logits(model, of_sequence) for of_sequence in ids]
        begin = [0, 0]
        for counts, asked in [((17, 11), 3), ((1, 1), 1), ((5, 5), 5), ((1, 1), 1), ((1, 1), 1)]:
            logits = advance(decoder, state, ids, begin, counts, asked)
            compare(logits, expected, begin, asked)
        bookkeeping.crop_(state, [4, 2])
        begin[:] = begin[0] - 4, begin[1] - 2
        for counts, asked in [((1, 1), 1), ((8, 3), 2), ((1, 1), 1)]:
            logits = advance(decoder, state, ids, begin, counts, asked)
            compare(logits, expected, begin, asked)


def compare(logits: Tensor, expected: list[Tensor], begin: list[int], asked: int) -> None:
    for got, of_one, end in zip(logits.split(asked), expected, begin, strict=True):
        torch.testing.assert_close(got, of_one[end - asked : end], atol=LOGIT_TOLERANCE, rtol=0)


@examples(0.5)
@given(plans(batch=st.integers(1, 3)))
def test_sets_nest_and_aux_is_the_difference(plan: Plan) -> None:
    pair = Pair(shared_model(plan.model), plan.schedule, plan.batch, fixed=plan.fixed)

    def checked(step: Callable[..., Tensor], *arguments: Any) -> Tensor:
        logits = step(*arguments)
        for b, new in enumerate(arguments[2]):
            n = pair.state.host_length[b]
            passed = [set(bookkeeping.computed(pair.state, 0, b).tolist())]
            assert passed[0] == set(range(n))
            active = [passed[0], *map(set, pair.active(b))] if new > 0 else []
            for s in pair.boundaries:
                passed.append(set(bookkeeping.computed(pair.state, s, b).tolist()))
                assert passed[s] <= passed[s - 1]
                waiting = set(bookkeeping.waiting(pair.state, s, b).tolist())
                assert waiting == passed[s - 1] - passed[s]
                if active:
                    assert n - 1 in active[s]
                    assert active[s] <= active[s - 1] & passed[s]
        return logits

    with steps_of_the_decoder(pair, checked):
        plan.run(pair)


class TestGenerations:
    @REVIVE
    def test_a_sequence_of_a_batch_is_what_it_is_alone(
        self, max_revive: int | None, fixed: bool
    ) -> None:
        model = shared_model("qwen3")
        schedule = PruningSchedule(PRUNED, window=3, pool=3, max_revive=max_revive)
        decoder = LazyDecoder.from_model(model, schedule)
        decoder.fixed_on_cpu = fixed
        ids = [random_ids(50, seed=7), random_ids(50, seed=8), random_ids(50, seed=9)]
        turns = [(31, 1, 12), *[(1, 1, 1)] * 5, (0, 9, 2), (4, 0, 0), *[(1, 1, 1)] * 5]
        state = decoder.new_state(3, model.lm_head.weight)
        begin = [0, 0, 0]
        together = [advance(decoder, state, ids, begin, counts) for counts in turns]
        for b in range(3):
            own = decoder.new_state(1, model.lm_head.weight)
            own_begin = [0]
            for counts, logits in zip(turns, together, strict=True):
                if counts[b] == 0:
                    continue
                row = sum(1 for count in counts[:b] if count > 0)
                alone = advance(decoder, own, [ids[b]], own_begin, (counts[b],))
                torch.testing.assert_close(
                    logits[row : row + 1], alone, atol=LOGIT_TOLERANCE, rtol=0
                )
            for s in range(3):
                expected = bookkeeping.computed(own, s, 0)
                assert torch.equal(bookkeeping.computed(state, s, b), expected)

    @REVIVE
    def test_repeated_in_a_row_and_interleaved(self, max_revive: int | None, fixed: bool) -> None:
        """Bit by bit the same, whatever else the decoder has done or is doing."""
        model = shared_model("llama")
        schedule = PruningSchedule(PRUNED, window=2, pool=3, max_revive=max_revive)
        decoder = LazyDecoder.from_model(model, schedule)
        decoder.fixed_on_cpu = fixed
        prompts = [[random_ids(40, seed=10)], [random_ids(40, seed=11)]]
        turns = [25, 1, 1, 1, 5, 1, 1]

        def generation(ids: list[list[int]]) -> Iterator[Tensor]:
            state = decoder.new_state(1, model.lm_head.weight)
            begin = [0]
            for count in turns:
                yield advance(decoder, state, ids, begin, (count,))

        first, second = (list(generation(prompt)) for prompt in prompts)
        again = list(generation(prompts[0]))
        interleaved = list(zip(generation(prompts[0]), generation(prompts[1]), strict=True))
        for step, (one, other) in enumerate(interleaved):
            assert torch.equal(again[step], first[step])
            assert torch.equal(one, first[step])
            assert torch.equal(other, second[step])

    def test_the_model_is_left_as_it_was(self) -> None:
        model = shared_model("llama")
        names = [name for name, _ in model.named_modules()]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        plan = Plan("llama", PruningSchedule(PRUNED), (Turn((20,)), Decode(3)))
        plan.run(Pair(model, plan.schedule))
        assert [name for name, _ in model.named_modules()] == names
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
