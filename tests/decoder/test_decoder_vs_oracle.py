"""The decoder against the oracle: equal tokens, logits and sets at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import MODELS, boundary_layers, random_ids, shared_model, tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import Boundary, PruningSchedule

from .pair import Pair
from .plans import Crop, Decode, Plan, Turn, examples, plans

REVIVE = pytest.mark.parametrize(
    ("max_revive", "fixed"),
    [(None, False), (0, False), (2, False), (0, True), (2, True)],
)


def run(plan: Plan) -> None:
    plan.run(Pair(shared_model(plan.model), plan.schedule, plan.batch, fixed=plan.fixed))


def two_boundaries(model: torch.nn.Module, **rules: object) -> PruningSchedule:
    """Keep 0.6 and 0.3 in the last layers that take a boundary."""
    keeps = zip(boundary_layers(model)[-2:], (0.6, 0.3), strict=True)
    boundaries = tuple(Boundary(layer=layer, keep=keep) for layer, keep in keeps)
    return PruningSchedule(boundaries, **rules)  # type: ignore[arg-type]


@examples()
@given(plans())
def test_one_sequence(plan: Plan) -> None:
    run(plan)


@examples()
@given(plans(batch=st.integers(2, 4)))
def test_ragged_batch(plan: Plan) -> None:
    """Each sequence of a batch is what the oracle makes of it alone."""
    run(plan)


def test_keep_times_length_is_a_whole_number() -> None:
    """0.28 · 25 is 7.000000000000001, and 7 tokens stay."""
    model = shared_model("llama")
    pair = Pair(model, PruningSchedule((Boundary(layer=1, keep=0.28),)))
    pair.step([random_ids(25, seed=4)])
    assert len(pair.oracles[0].active[1]) == 7


@REVIVE
def test_past_the_capacity_of_tables_and_stores(max_revive: int | None, fixed: bool) -> None:
    model = shared_model("llama")
    schedule = two_boundaries(model, window=3, pool=3, max_revive=max_revive)
    run(Plan("llama", schedule, (Turn((60,)), Decode(75)), seed=3, fixed=fixed))


@REVIVE
@pytest.mark.parametrize("window", [1, 5])
def test_drafts_that_are_cropped(max_revive: int | None, fixed: bool, window: int) -> None:
    """As assisted decoding does it: logits of all drafted tokens, some of which are taken back."""
    model = shared_model("qwen3")
    schedule = two_boundaries(model, window=window, max_revive=max_revive, protect_first=2)
    rounds = [(Turn((4,), asked=4), Crop((taken_back,))) for taken_back in (0, 3, 1, 4, 2) * 4]
    actions = (Turn((40,)), *(action for pair in rounds for action in pair), Decode(3))
    run(Plan("qwen3", schedule, actions, seed=4, fixed=fixed))


@REVIVE
def test_everything_cropped(max_revive: int | None, fixed: bool) -> None:
    model = shared_model("llama")
    schedule = two_boundaries(model, max_revive=max_revive)
    actions = (Turn((12, 20)), Decode(2), Crop((99, 5)), Turn((7, 3)), Decode(3), Crop((99, 99)))
    run(Plan("llama", schedule, (*actions, Turn((5, 9)), Decode(2)), seed=5, fixed=fixed))


@REVIVE
def test_shorter_than_min_tokens_after_a_crop(max_revive: int | None, fixed: bool) -> None:
    """Everything is active again, as far as it may be revived."""
    model = shared_model("llama")
    schedule = two_boundaries(model, max_revive=max_revive, min_tokens=30)
    pair = Pair(model, schedule, fixed=fixed)
    Plan("llama", schedule, (Turn((40,)), Decode(2), Crop((15,)), Decode(2)), seed=6).run(pair)
    left = [len(waiting) for waiting in pair.oracles[0].aux[1:]]
    assert (left == [0, 0]) == (max_revive is None)


@REVIVE
def test_beams(max_revive: int | None, fixed: bool) -> None:
    """Sequences are reordered and repeated between steps, and then part."""
    model = shared_model("gemma3")
    pair = Pair(model, two_boundaries(model, window=2, max_revive=max_revive), batch=2, fixed=fixed)
    pair.step([random_ids(25, seed=1), random_ids(30, seed=2)])
    pair.reorder([0, 0, 1, 1])
    for step, order in enumerate([(0, 1, 2, 3), (1, 1, 3, 2), (0, 0, 2, 2), (3, 2, 1, 0)]):
        pair.step([[token] for token in random_ids(4, seed=10 + step)])
        pair.reorder(order)
    pair.reorder([2, 0])
    pair.decode(12)
    pair.compare_stores()


@pytest.mark.parametrize(
    ("max_revive", "fixed"),
    [(None, False), (0, False), (2, False), (0, True), (2, True), (12, True)],
)
def test_forks(max_revive: int | None, fixed: bool) -> None:
    """Both sides go on in turn, with room behind the rows they share, and none writes there.

    In fixed shapes there is room that the host believes to be used.
    """
    model = shared_model("llama")
    pair = Pair(model, two_boundaries(model, max_revive=max_revive), fixed=fixed)
    pair.step([random_ids(150, seed=1)])
    pair.step([random_ids(50, seed=2)])  # now stores grow, and get room
    pair.decode(7 if fixed else 0)
    sides = [pair, pair.fork()]
    for number, side in enumerate(sides):
        side.step([random_ids(6, seed=10 + number)])
    sides.append(sides[1].fork())
    for side in sides:
        side.decode(2)
    for side in sides:
        side.compare_stores()


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_and_logits_to_keep(name: str) -> None:
    """`step` takes what `embed_tokens` gives, and the last logits do not depend on how many."""
    model = shared_model(name)
    pair = Pair(model, PruningSchedule())
    ids, positions = torch.tensor(random_ids(9, seed=3)), torch.arange(9)
    with torch.no_grad():
        hidden = pair.decoder.embed_tokens(ids)
        three = pair.decoder.step(hidden, positions, [9], pair.state, 3)
    one = Pair(model, PruningSchedule()).step([ids.tolist()])
    torch.testing.assert_close(three[-1:], one, atol=1e-5, rtol=0)


def test_more_logits_asked_than_there_are_new_tokens() -> None:
    """Only logits of new tokens can be asked: asking for more protects no more."""
    model = shared_model("llama")
    pair = Pair(model, PruningSchedule((Boundary(layer=1, tokens=1),)))
    pair.step([random_ids(12, seed=4)])
    pair.step([[7]], asked=3)
    assert len(pair.oracles[0].active[1]) == 1


@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (0, 2, 1), (3, 3, 0, 2)])
def test_more_logits_asked_than_one_of_a_batch_brings(counts: tuple[int, ...]) -> None:
    """The others would protect more tokens than that one: refused before any work."""
    model = shared_model("llama")
    schedule = PruningSchedule((Boundary(layer=1, keep=0.5),))
    tokens, asked = [[7] * count for count in counts], max(counts)
    pair = Pair(model, schedule, batch=len(counts))
    with pytest.raises(ValueError, match=f"logits_to_keep: got {asked}, expected at most the new"):
        pair.step(tokens, asked)
    assert pair.state.host_length == [0] * len(counts)
    wide = replace(schedule, window=asked)  # protects as many tokens of every sequence
    Pair(model, wide, batch=len(counts)).step(tokens, asked)


class TestScoringHeads:
    @pytest.mark.parametrize("over_heads", ["mean", "max"])
    @pytest.mark.parametrize("count", [8, 9, 10])
    def test_most_of_many(self, count: int, over_heads: str) -> None:
        """More than the 8 whose numbers make one constant, of several for each key head."""
        model = tiny_llama(num_attention_heads=12)
        heads = tuple(range(12 - count, 12))
        boundary = Boundary(layer=1, keep=0.4, heads=heads)
        pair = Pair(model, PruningSchedule((boundary,), window=2, over_heads=over_heads))
        pair.step([random_ids(30, seed=1)])
        pair.decode(3)

    @pytest.mark.parametrize("head", [4, 5])
    def test_one_that_there_is_not(self, head: int) -> None:
        """The last of four is 3."""
        boundaries = Boundary(layer=1, keep=0.5), Boundary(layer=3, keep=0.5, heads=(0, 3))
        Pair(shared_model("llama"), PruningSchedule(boundaries)).step([random_ids(9, seed=1)])
        wrong = replace(boundaries[1], heads=(0, head))
        message = f"layer 3: heads: expected numbers of query heads, 0 to 3, got {head}"
        with pytest.raises(ValueError, match=message):
            Pair(shared_model("llama"), PruningSchedule((boundaries[0], wrong)))


# The norms of a layer that the oracle reads, by family.
NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "qwen3": ("self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm"),
    "gemma3": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
    ),
}


@pytest.mark.parametrize(("name", "path"), [(n, path) for n in NORMS for path in NORMS[n]])
def test_an_epsilon_of_its_own(name: str, path: str) -> None:
    """Of one norm in a layer: the operator for a whole layer, which takes one, is not for it."""
    model = MODELS[name]()
    norm = model.model.layers[0].get_submodule(path)
    setattr(norm, "eps" if name == "gemma3" else "variance_epsilon", 0.5)
    pair = Pair(model, PruningSchedule())
    pair.step([random_ids(9, seed=2)], asked=9)
    pair.decode(2)


@REVIVE
def test_a_sequence_without_new_tokens(max_revive: int | None, fixed: bool) -> None:
    """It takes no step: nothing of it changes, and nothing revives.

    Where the others bring one token each, no step in fixed shapes is taken.
    """
    model = shared_model("llama")
    schedule = two_boundaries(model, max_revive=max_revive)
    actions = (Turn((20, 9, 14)), Decode(2), Turn((0, 2, 0), asked=2), Turn((0, 1, 3)), Decode(2))
    actions += (Turn((0, 1, 1)), Turn((1, 0, 0)), Decode(2))
    run(Plan("llama", schedule, actions, seed=7, fixed=fixed))


class TestNotANumber:
    """A NaN in one token's score is that token's own affair."""

    @pytest.mark.parametrize("pool", [1, 3])
    def test_in_a_stored_score(self, pool: int) -> None:
        """It counts as −inf: its neighbours pool their own scores, and no logit is touched."""
        model = shared_model("llama")
        pair = Pair(model, two_boundaries(model, window=4, pool=pool))
        pair.step([random_ids(24, seed=8)])
        for s, token in ((1, 5), (2, 5), (1, 13)):
            pair.state.importance[s - 1][0, token] = torch.nan
            pair.oracles[0].importance[s][token] = torch.nan
        for _ in range(3):
            logits = pair.step([[pair.next_token[0]]])
            assert logits.isfinite().all()
            assert pool > 1 or not {5, 13} & set(pair.active(0)[0])

    @pytest.mark.parametrize("score", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("counts", [(4, 4), (7, 4), (4, 3), (2, 9), (0, 5)])
    def test_in_a_stored_score_that_is_forgotten(
        self, score: float, counts: tuple[int, ...]
    ) -> None:
        """From `window` new tokens on the old score counts for nothing, in that sequence alone."""
        model = shared_model("llama")
        pair = Pair(model, two_boundaries(model, window=4), batch=2)
        pair.step([random_ids(24, seed=8), random_ids(19, seed=9)])
        for b, oracle in enumerate(pair.oracles):
            for s in pair.boundaries:
                pair.state.importance[s - 1][b, 5] = score
                oracle.importance[s][5] = score
        pair.step([random_ids(count, seed=count) for count in counts])
        for b, count in enumerate(counts):
            assert bool(pair.state.importance[0][b, 5].isfinite()) == (count >= 4)
        pair.step([[7], [8]])

    def test_never_selected_though_there_is_room(self) -> None:
        """−inf is nobody's score: fewer stay than the schedule would keep."""
        model = shared_model("llama")
        pair = Pair(model, two_boundaries(model, window=3))
        pair.step([random_ids(24, seed=9)])
        pair.state.importance[0][0, 2:20] = -torch.inf
        pair.oracles[0].importance[1][2:20] = -torch.inf
        pair.step([[7]])
        assert len(pair.active(0)[0]) == 7  # 0, 1 and 20 … 24, of 15 that might stay

    @pytest.mark.parametrize(("window", "pool"), [(1, 1), (4, 1), (4, 3)])
    def test_in_a_key(self, window: int, pool: int) -> None:
        """The scores of all other tokens are what they would be without this key.

        Attention itself is softmax over the active keys, in the boundary layer too, so rows that
        see such a key are NaN; its score decides about nobody else.
        """
        model = MODELS["llama"]()
        layer, token = 2, 6
        pair = Pair(
            model, PruningSchedule((Boundary(layer=layer, keep=0.5),), window=window, pool=pool)
        )
        with poisoned_key(model, layer, token):
            pair.step([random_ids(20, seed=8)])
        for _ in range(3):
            importance = pair.state.importance[0][0, : pair.oracles[0].n]
            assert importance.isnan().nonzero().tolist() == [[token]]
            assert pool > 1 or token not in pair.active(0)[0]
            pair.step([[9]])

    def test_checked_mode_refuses_it(self) -> None:
        model = MODELS["llama"]()
        pair = Pair(model, PruningSchedule())
        pair.decoder.checked = True
        model.model.norm.weight[3] = torch.nan
        with pytest.raises(RuntimeError, match="NaN in the logits of layer 4"):
            pair.step([random_ids(5, seed=1)])

    @pytest.mark.parametrize("layer", [1, 3])
    def test_checked_mode_names_the_boundary_that_sees_it(self, layer: int) -> None:
        """A NaN is refused where it would decide about tokens, not where it comes out."""
        model = MODELS["llama"]()
        schedule = PruningSchedule((Boundary(layer=1, keep=0.9), Boundary(layer=3, keep=0.9)))
        decoder = LazyDecoder.from_model(model, schedule, checked=True)
        pair = Pair(model, schedule, decoder=decoder)
        with (
            poisoned_key(model, layer, token=0),
            pytest.raises(RuntimeError, match=f"NaN in the importance of layer {layer}"),
        ):
            pair.step([random_ids(20, seed=8)])


@contextmanager
def poisoned_key(model: Any, layer: int, token: int) -> Iterator[None]:
    """Within, this row's key in this layer is NaN."""

    def poison(module: object, args: object, keys: torch.Tensor) -> torch.Tensor:
        keys = keys.clone()
        keys.view(-1, keys.size(-1))[token] = torch.nan  # with a batch of one, or without
        return keys

    hook = model.model.layers[layer].self_attn.k_proj.register_forward_hook(poison)
    try:
        yield
    finally:
        hook.remove()
