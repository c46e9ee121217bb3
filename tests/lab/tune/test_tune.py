"""References, single runs, and whole tunings on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import boundary_layers, random_ids, shared_model

import lazyllm_ext
from lazyllm_ext.lab.evaluation import Item, Subject
from lazyllm_ext.lab.evaluation.measure import divergence, make_reference
from lazyllm_ext.lab.evaluation.sessions import LazySession, PlainSession
from lazyllm_ext.lab.tools.cost import prefill_operations
from lazyllm_ext.lab.tools.dense import DenseContinuation
from lazyllm_ext.lab.tune import (
    Candidate,
    Outcome,
    Wish,
    read_prompts,
    tune,
    write_report,
    write_schedule,
)
from lazyllm_ext.lab.tune.candidates import operations
from lazyllm_ext.lab.tune.curves import Recall, choose_layers, recalls
from lazyllm_ext.lab.tune.prompts import halves
from lazyllm_ext.lab.tune.reference import DenseModel
from lazyllm_ext.lab.tune.report import frontier, to_markdown
from lazyllm_ext.lab.tune.trial import run
from lazyllm_ext.schedule import Boundary, PruningSchedule

SMALL = Wish(bound=0.3, new_tokens=4, most_runs=12)


class TestReference:
    def test_is_the_dense_model(self, subject: Subject, items: tuple[Item, ...], monkeypatch: Any):
        monkeypatch.setattr("lazyllm_ext.lab.evaluation.measure.REFERENCE_TOKENS", 6)
        ids = subject.encode(items[0]).ids
        ours = DenseModel(subject.model).reference(ids, 6, subject.stop)
        theirs = make_reference(subject, PlainSession(subject, ids))
        assert ours.tokens == theirs.tokens
        torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=1e-4, rtol=0)
        assert [recall.layer for recall in ours.curve] == [0, 1, 2]  # 3 has no later one
        assert all(0 <= recall.mass <= 1 and 0 <= recall.top <= 1 for recall in ours.curve)

    def test_ends_where_the_answer_ends(self, subject: Subject, items: tuple[Item, ...]):
        ids = subject.encode(items[0]).ids
        dense = DenseModel(subject.model)
        whole = dense.reference(ids, 4, set(), [2])
        first = dense.reference(ids, 4, {whole.tokens[0]}, [2])
        assert (len(whole.tokens), len(first.tokens)) == (4, 1)
        assert whole.hidden[2].shape[0] == ids.numel() + 3
        torch.testing.assert_close(whole.hidden[2][: ids.numel()], first.hidden[2])

    def test_leaves_nothing_behind(self, subject: Subject, items: tuple[Item, ...]):
        dense = DenseModel(subject.model)
        dense.reference(subject.encode(items[0]).ids, 2, set(), [1])
        assert dense.decoder.on_importance is None
        assert not dense.decoder.layers[1].input_norm._forward_pre_hooks


class TestRun:
    @pytest.mark.parametrize("boundaries", [((1, 0.5),), ((1, 0.6), (3, 0.2)), ((3, 0.1),)])
    def test_is_what_the_whole_model_gives(
        self, subject: Subject, items: tuple[Item, ...], boundaries: Any
    ):
        ids = subject.encode(items[0]).ids
        schedule = Candidate(boundaries).schedule()
        dense = DenseModel(subject.model)
        reference = dense.reference(ids, 5, subject.stop, [boundaries[0][0]])
        got = run(dense.decoder, schedule, reference)
        with lazyllm_ext.apply(subject.model, schedule) as lazy:
            session = LazySession(lazy, ids)
            logits = session.prefill()
            expected = DenseContinuation(reference.tokens, reference.log_probs)
            assert got.operations == session.operations()
            assert got.first == float(logits.argmax() == reference.tokens[0])
            assert got.kl == pytest.approx(divergence(session, logits, expected), abs=1e-5)
        assert got.kl > 1e-3
        assert got.dense_operations == subject.dense_operations(ids.numel())

    @pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
    def test_keeping_all_is_lossless(self, name: str):
        model = shared_model(name)
        dense = DenseModel(model)
        assert dense.layers == boundary_layers(model)
        ids = torch.tensor(random_ids(70, seed=3))
        reference = dense.reference(ids, 4, set(), dense.layers)
        for layer in dense.layers:
            outcome = run(dense.decoder, Candidate(((layer, 1.0),)).schedule(), reference)
            assert outcome.kl < 1e-6
            assert (outcome.agreement, outcome.first) == (1, 1)

    def test_operations_beforehand(self, subject: Subject):
        dense = DenseModel(subject.model).decoder
        whole = operations(dense, Candidate(()), 200)
        assert whole == subject.dense_operations(200)
        one, two = (operations(dense, Candidate(((1, keep),)), 200) for keep in (0.5, 0.2))
        assert two < one < whole
        schedule = PruningSchedule((Boundary(layer=1, keep=0.5),))
        decoder = lazyllm_ext.LazyDecoder.from_model(subject.model, schedule)
        kept = torch.linspace(0, 199, 100).round().long()
        assert one == prefill_operations(decoder, 200, [kept]).total


class TestCurves:
    def test_finds_what_it_scores(self):
        tokens = 200
        wanted = torch.zeros(tokens)
        wanted[50] = 1.0
        blind = torch.zeros(tokens)
        blind[120:160] = torch.linspace(1, 2, 40)
        curve = recalls({0: blind, 2: wanted, 5: blind}, dict.fromkeys((0, 2, 5), wanted))
        assert [(r.layer, r.mass) for r in curve] == [(0, 0.0), (2, 1.0)]
        assert recalls({0: blind[:36], 1: blind[:36]}, {0: blind[:36], 1: blind[:36]}) == []

    def test_earliest_layers_of_each_level(self):
        tops = (0.2, 0.21, 0.3, 0.5, 0.45, 0.8, 0.79, 0.7, 0.6)
        curve = [Recall(layer, 0.0, top) for layer, top in enumerate(tops)]
        assert choose_layers(curve, 10, 3) == [3, 5, 7]
        assert choose_layers(curve, 10, 1) == [5]
        assert choose_layers([], 10, 3) == []
        flat = [Recall(layer, 0.5, 0.5) for layer in range(6)]
        assert choose_layers(flat, 4, 3) == [1, 3, 5]
        assert choose_layers(flat, 30, 3) == [0, 2, 4]  # none is deeper

    def test_none_in_the_first_fifth(self):
        """What early layers attend to later ones may too; it says nothing of what is asked."""
        curve = [Recall(layer, 0.9, 0.9 if layer == 1 else 0.5) for layer in range(29)]
        assert min(choose_layers(curve, 30)) == 6


class TestTune:
    def test_within_the_bound_and_repeatable(self, subject: Subject, items: tuple[Item, ...]):
        one, two = (tune(subject, items, SMALL, "mine") for _ in range(2))
        assert one == two
        assert one.tuned is not None
        assert one.tuned.kl <= SMALL.bound
        assert one.tuned.ratio > 1
        assert one.checked is not None
        assert one.schedule.name == "mine"
        assert 0 < len(one.trials) <= 12
        chosen = next(t for t in one.trials if t.candidate == one.chosen)
        assert chosen.within
        assert chosen.prompts == chosen.of == 2
        for trial in one.trials:
            assert trial.within == (trial.prompts == 2 and trial.outcome.kl <= SMALL.bound)
            assert not trial.within or trial.outcome.ratio <= 1.05 * one.tuned.ratio

    @pytest.mark.parametrize("holding", [0.5, 2.0])
    def test_steps_back_to_what_holds_on_the_other_half(
        self, subject: Subject, items: tuple[Item, ...], monkeypatch: Any, holding: float
    ):
        """As if the last keep had to be larger there, or nothing were large enough."""
        known: list[Any] = []
        reference, dense = DenseModel.reference, len(items) // 2

        def remember(self: DenseModel, *arguments: Any) -> Any:
            known.append(reference(self, *arguments))
            return known[-1]

        def fake(decoder: Any, schedule: PruningSchedule, of: Any) -> Outcome:
            place = next(n for n, one in enumerate(known) if one is of)
            enough = 0.2 if place < dense else holding
            keep = schedule.boundaries[-1].keep
            assert keep is not None
            return replace(run(decoder, schedule, of), kl=0.1 if keep >= enough else 1.0)

        monkeypatch.setattr(DenseModel, "reference", remember)
        monkeypatch.setattr("lazyllm_ext.lab.tune.trial.run", fake)
        wish = Wish(bound=0.5, new_tokens=2, most_boundaries=1, most_runs=30)
        tuning = tune(subject, items, wish, "mine")
        assert len(tuning.checks) > 1
        said = to_markdown(tuning, "tiny")
        if holding > 1:
            assert tuning.schedule.boundaries == ()
            assert (tuning.tuned, tuning.checked) == (None, None)
            assert not any(check.within for check in tuning.checks)
            assert f"(checked: {len(tuning.checks)})" in said
        else:
            assert tuning.chosen.boundaries[-1][1] == 0.55  # the smallest that holds
            last = [check for check in tuning.checks if check.within][-1]
            assert (tuning.chosen, tuning.checked) == (last.candidate, last.outcome)
            assert "Within it on the half that was tuned on, and not on the other" in said
        assert "What did not hold on the other half" in said

    def test_bound_zero_is_dense(self, subject: Subject, items: tuple[Item, ...]):
        tuning = tune(subject, items, Wish(bound=0.0, new_tokens=2, most_runs=30), "mine")
        assert tuning.schedule.boundaries == ()
        assert (tuning.tuned, tuning.checked, tuning.open) == (None, None, 0)
        assert to_markdown(tuning, "tiny").splitlines()[2].startswith("Dense: no schedule ")

    def test_agreement(self, subject: Subject, items: tuple[Item, ...]):
        wish = Wish(bound=100.0, agreement=1.0, new_tokens=3, most_runs=20)
        tuning = tune(subject, items, wish, "mine")
        assert tuning.tuned is None or tuning.tuned.agreement == 1.0
        assert any(not trial.within for trial in tuning.trials)

    def test_prompts_too_short_to_drop_anything(self, subject: Subject, tmp_path: Path):
        file = tmp_path / "short.jsonl"
        file.write_text('{"prompt": "a b c"}\n{"prompt": "d e f"}\n')
        tuning = tune(subject, read_prompts(file).items, SMALL, "mine")
        assert tuning.trials == []
        assert tuning.schedule.boundaries == ()
        assert "expected a prompt of more than 36 tokens" in to_markdown(tuning, "tiny")

    def test_progress_ends_at_the_total(self, subject: Subject, items: tuple[Item, ...]):
        seen: list[tuple[int, int]] = []
        wish = Wish(bound=0.3, new_tokens=2, most_runs=4)
        tune(subject, items, wish, "mine", lambda what, done, total: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert all(done <= total for done, total in seen)
        assert seen[-1][0] == seen[-1][1] >= 2 + 4 * 2

    def test_what_is_written(self, subject: Subject, items: tuple[Item, ...], tmp_path: Path):
        tuning = tune(subject, items, SMALL, "mine")
        write_schedule(tuning, tmp_path / "s.json")
        assert PruningSchedule.load(tmp_path / "s.json") == tuning.schedule
        written = write_report(tuning, "tiny", tmp_path / "report")
        assert [path.name for path in written] == [
            "report.md", "report.json", "frontier.png", "recall.png",
        ]  # fmt: skip
        assert all(path.stat().st_size > 0 for path in written)
        data = json.loads((tmp_path / "report" / "report.json").read_text())
        assert len(data["trials"]) == len(tuning.trials)
        assert PruningSchedule.load(data["schedule"]) == tuning.schedule
        text = (tmp_path / "report" / "report.md").read_text()
        assert all(words in text for words in ("| checked | 2 |", ", chosen |", "| layer |"))
        best = frontier(tuning)
        assert all(a.outcome.kl > b.outcome.kl for a, b in pairwise(best))


def test_halves() -> None:
    assert halves([0, 1, 2, 3, 4]) == ([0, 2, 4], [1, 3])
    with pytest.raises(ValueError) as caught:
        halves([0])
    assert str(caught.value) == (
        "prompts: expected at least 2, one to tune on and one to check with, got 1"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bound": -1.0}, "bound: expected a KL of at least 0 nats, got -1.0"),
        ({"bound": float("nan")}, "bound: expected a KL of at least 0 nats, got nan"),
        ({"agreement": 1.5}, "agreement: expected a part from 0 to 1, got 1.5"),
        ({"new_tokens": 0}, "new_tokens: expected at least 1, got 0"),
        ({"most_boundaries": 4}, "most_boundaries: expected 1 to 3, got 4"),
        ({"most_runs": 0}, "most_runs: expected at least 1, got 0"),
    ],
)
def test_wrong_wish(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Wish(**fields)
    assert str(caught.value) == message


def test_no_place_for_a_boundary() -> None:
    with pytest.raises(ValueError) as caught:
        DenseModel(shared_model("mistral-sliding"))
    assert str(caught.value).startswith("model: expected one with a full-attention layer before")
