"""Contenders: what each of them computes, drops and counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lazyllm_ext.lab.evaluation import Subject, parse_contender, parse_contenders
from lazyllm_ext.lab.evaluation.compress import choose_words, join_words, owners, split_words
from lazyllm_ext.lab.evaluation.measure import generate, measure
from lazyllm_ext.lab.evaluation.static import DEPTH

from .conftest import LM, PRUNED, QA, TEXT, reference_for

TOKENS = len(TEXT)  # a token is a byte
LAYERS = 5


def prefilled(subject: Subject, spec: str, seed: int = 0) -> tuple[Any, Any]:
    """The session after its prefill, and the logits; LazyLLM is not applied any more."""
    with parse_contender(spec).open(subject, QA, subject.encode(QA), seed) as session:
        return session, session.prefill()


def run(subject: Subject, spec: str, item: Any = QA, seed: int = 0) -> Any:
    """What is measured of one run."""
    reference = None if spec == "dense" else reference_for(subject, item)
    with parse_contender(spec).open(subject, item, subject.encode(item), seed) as session:
        return measure(subject, session, item, reference)[0]


class TestNames:
    def test_all_kinds(self, schedule: Path):
        specs = ["dense", "balanced", str(schedule), f"norevive:{schedule}", "random:fast"]
        contenders = parse_contenders([*specs, "static:0.30", " compress:1"])
        assert [contender.name for contender in contenders] == [
            "dense", "balanced", "pruned", "norevive:pruned", "random:fast", "static:0.3",
            "compress:1",
        ]  # fmt: skip
        assert [contender.seeds for contender in contenders] == [1, 1, 1, 1, 5, 1, 1]

    def test_folder_has_a_schedule_for_each_kind(self, schedule: Path, tmp_path: Path):
        folder = tmp_path / "tuned"
        folder.mkdir()
        for kind, window in (("qa", 4), ("questions", 5), ("language-modelling", 6)):
            (folder / f"{kind}.json").write_text(json.dumps({**PRUNED, "window": window}))
        contender = parse_contender(str(folder))
        assert (contender.name, contender.seeds) == ("tuned", 1)
        other = replace(QA, task="another")
        chosen = [contender.of(item).identity["schedule"]["window"] for item in (QA, other, LM)]
        assert chosen == [4, 5, 6]  # the task's goes before the category's
        assert contender.of(QA).identity == parse_contender(str(schedule)).identity
        assert contender.of(LM).name == "tuned"
        assert list(contender.identity["kinds"]) == ["language-modelling", "qa", "questions"]
        drawn = parse_contender(f"random:{folder}")
        assert (drawn.name, drawn.seeds, drawn.of(QA).seeds) == ("random:tuned", 5, 5)

    def test_folder_computes_what_its_files_do(
        self, subject: Subject, schedule: Path, tmp_path: Path
    ):
        folder = tmp_path / "tuned"
        folder.mkdir()
        (folder / "qa.json").write_text(schedule.read_text())
        (folder / "language-modelling.json").write_text('{"boundaries": []}')
        for item, same in ((QA, str(schedule)), (LM, str(folder / "language-modelling.json"))):
            ours, alone = run(subject, str(folder), item), run(subject, same, item)
            assert (ours.kept, ours.kl, ours.score) == (alone.kept, alone.kl, alone.score)

    def test_names_of_folders(
        self, schedule: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        folder = tmp_path / "tuned-0.5b"
        folder.mkdir()
        (folder / "qa.json").write_text(schedule.read_text())
        (folder / ".qa.json.swp.json").write_text("{")
        (folder / "old.json").mkdir()
        assert parse_contender(f"{folder}/").name == "tuned-0.5b"
        monkeypatch.chdir(folder)
        assert parse_contender("norevive:.").name == "norevive:tuned-0.5b"
        assert list(parse_contender(".").kinds) == ["qa"]
        (tmp_path / "balanced").mkdir()
        monkeypatch.chdir(tmp_path)
        assert not parse_contender("balanced").kinds  # a shipped name goes first
        with pytest.raises(ValueError, match=r"balanced/: expected a folder with a schedule for"):
            parse_contender("balanced/")
        folder.rename(tmp_path / "dense")
        with pytest.raises(ValueError, match="another name than dense, which stands for plain"):
            parse_contender("dense/")

    def test_identity_is_the_schedules_content(self, schedule: Path, tmp_path: Path):
        same = tmp_path / "other.json"
        same.write_text(json.dumps({**PRUNED, "name": "another"}))
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps({**PRUNED, "window": 5}))
        first, second, third = (
            parse_contender(str(file)).identity for file in (schedule, same, changed)
        )
        assert first == second
        assert first != third
        assert first != parse_contender(f"random:{schedule}").identity

    def test_no_revival(self, schedule: Path, tmp_path: Path):
        identity = parse_contender(f"norevive:{schedule}").identity
        assert identity["schedule"]["max_revive"] == 0
        assert parse_contender(str(schedule)).identity["schedule"]["max_revive"] is None
        file = tmp_path / "models.json"
        file.write_text(json.dumps({**PRUNED, "models": {"some/model": PRUNED}}))
        models = parse_contender(f"norevive:{file}").identity["schedule"]["models"]
        assert models["some/model"]["max_revive"] == 0

    @pytest.mark.parametrize(
        ("specs", "message"),
        [
            (["static:0"], "contenders: static: expected the part of the prompt that stays, above "
             "0 and at most 1, got '0'"),
            (["compress:much"], "contenders: compress: expected the part of the prompt that stays, "
             "above 0 and at most 1, got 'much'"),
            (["dense", "dense"], "contenders: expected each name once, got 'dense' twice"),
            ([], "contenders: expected at least one, got none"),
            (["random:none"], "contenders: expected dense, a schedule (one of balanced, fast, "
             "paper, the path of a JSON file or a folder of them), norevive:SCHEDULE, "
             "random:SCHEDULE, static:KEEP or compress:KEEP, got 'random:none'"),
        ],
    )  # fmt: skip
    def test_wrong(self, specs: list[str], message: str):
        with pytest.raises(ValueError) as error:
            parse_contenders(specs)
        assert str(error.value) == message


class TestDense:
    def test_answer_is_that_of_generate(self, subject: Subject):
        ids = subject.encode(QA).ids[None]
        expected = subject.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
        )[0, TOKENS:].tolist()
        session, logits = prefilled(subject, "dense")
        assert generate(session, logits, 5, subject.stop).tokens == expected

    def test_measured(self, subject: Subject):
        measured = run(subject, "dense")
        assert (measured.kl, measured.same_first_token) == (0.0, True)
        assert (measured.computed_percent, measured.kept) == (100.0, [])
        assert measured.new_tokens == 5
        assert measured.operations == subject.dense_operations(TOKENS)

    def test_nll(self, subject: Subject):
        measured = run(subject, "dense", LM)
        ids = subject.tokens(TEXT + LM.answers[0]).ids
        with torch.no_grad():
            logits = subject.model(ids[None]).logits[0, TOKENS - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[TOKENS:]).item()
        assert measured.also["nll"] == pytest.approx(expected, rel=1e-4)
        assert measured.score == pytest.approx(math.exp(-expected), rel=1e-4)
        assert (measured.output, measured.new_tokens) == ("", 0)


class TestSchedule:
    def test_keeping_everything_is_dense(self, subject: Subject, tmp_path: Path):
        file = tmp_path / "all.json"
        file.write_text(json.dumps({"boundaries": [{"layer": 2, "keep": 1.0}]}))
        for item in (QA, LM):
            dense, ours = run(subject, "dense", item), run(subject, str(file), item)
            assert ours.output == dense.output
            assert ours.score == pytest.approx(dense.score, rel=1e-3)
            assert ours.kl < 1e-6
            assert ours.same_first_token

    def test_drops_the_stated_share(self, subject: Subject, schedule: Path):
        session, _ = prefilled(subject, str(schedule))
        kept = session.kept()
        assert [entry.layer for entry in kept] == [1, 3]
        shares = [math.ceil(keep * TOKENS - 1e-9) for keep in (0.5, 0.2)]
        assert [len(entry.tokens) for entry in kept] == shares
        # Layer 0 whole, 1 and 2 the first share, 3 the second, of the last layer one token.
        computed = TOKENS + 2 * shares[0] + shares[1] + 1
        assert session.computed_percent() == pytest.approx(100 * computed / (LAYERS * TOKENS))
        assert session.operations() < 0.7 * subject.dense_operations(TOKENS)

    def test_divergence_is_that_of_single_steps(self, subject: Subject, schedule: Path):
        """The dense model's continuation, fed token by token, on each side."""
        measured = run(subject, str(schedule))
        reference = reference_for(subject, QA)
        with parse_contender(str(schedule)).open(subject, QA, subject.encode(QA), 0) as session:
            rows = [session.prefill()]
            rows += [session.step(torch.tensor([token]))[0] for token in reference.tokens[:-1]]
        ours = torch.stack(rows).log_softmax(-1)
        dense = reference.log_probs
        expected = torch.nn.functional.kl_div(ours, dense, log_target=True, reduction="batchmean")
        assert measured.kl == pytest.approx(expected.item(), rel=1e-4)
        assert measured.kl > 1e-4

    def test_no_revival_never_revives(self, subject: Subject, schedule: Path):
        session, _ = prefilled(subject, f"norevive:{schedule}")
        before = session.computed_percent()
        with parse_contender(f"norevive:{schedule}").open(
            subject, QA, subject.encode(QA), 0
        ) as session:
            generate(session, session.prefill(), 12, frozenset())
            assert session.cache.report().revived_per_boundary == [0, 0]
            assert session.computed_percent() == before


class TestRandom:
    def test_same_counts_other_tokens(self, subject: Subject, schedule: Path):
        spec = f"random:{schedule}"
        first, again, other = (prefilled(subject, spec, seed)[0].kept() for seed in (0, 0, 1))
        assert first == again
        assert first[0].tokens != other[0].tokens
        ours = prefilled(subject, str(schedule))[0].kept()
        assert [len(entry.tokens) for entry in first] == [len(entry.tokens) for entry in ours]
        # The first two and the last four are protected, as in the schedule.
        for entry in first:
            assert set(entry.tokens) >= {0, 1, *range(TOKENS - 4, TOKENS)}

    def test_items_draw_differently(self, subject: Subject, schedule: Path):
        contender = parse_contender(f"random:{schedule}")
        kept = []
        for item in (QA, replace(QA, id="another")):
            with contender.open(subject, item, subject.encode(item), 0) as session:
                session.prefill()
                kept.append(session.kept()[0].tokens)
        assert kept[0] != kept[1]

    @pytest.mark.parametrize("max_revive", [None, 2])
    def test_draws_once_for_a_generation(
        self, subject: Subject, tmp_path: Path, max_revive: int | None
    ):
        """What was dropped stays dropped: no token is drawn anew, generated ones stay."""
        file = tmp_path / "bounded.json"
        file.write_text(json.dumps({**PRUNED, "max_revive": max_revive}))
        with parse_contender(f"random:{file}").open(subject, QA, subject.encode(QA), 3) as session:
            logits = session.prefill()
            before = session.kept()
            generate(session, logits, 10, frozenset())
            after = session.kept()
            assert session.cache.report().revived_per_boundary == [0, 0]
        new = set(range(TOKENS, TOKENS + 9))
        for entry, earlier in zip(after, before, strict=True):
            assert new <= set(entry.tokens) <= new | set(earlier.tokens)


class TestStatic:
    def test_drops_once_and_keeps_positions(self, subject: Subject):
        session, logits = prefilled(subject, "static:0.4")
        (kept,) = session.kept()
        layer = round(DEPTH * LAYERS)
        assert kept.layer == layer
        assert len(kept.tokens) == math.ceil(0.4 * TOKENS)
        share = len(kept.tokens) / TOKENS
        expected = 100 * (layer + (LAYERS - layer) * share) / LAYERS
        assert session.computed_percent() == pytest.approx(expected)
        ids, places = subject.encode(QA).ids[kept.tokens], torch.tensor(kept.tokens)
        with torch.no_grad():
            whole = subject.model(
                torch.cat([ids, torch.tensor([7])])[None],
                attention_mask=torch.ones(1, len(ids) + 1),
                position_ids=torch.cat([places, torch.tensor([TOKENS])])[None],
            ).logits[0]
        torch.testing.assert_close(logits, whole[-2], atol=1e-4, rtol=0)
        torch.testing.assert_close(session.step(torch.tensor([7]))[0], whole[-1], atol=1e-4, rtol=0)
        # The scoring pass is paid for.
        assert session.operations() > subject.dense_operations(session.ids.numel())

    def test_keeping_everything_is_dense(self, subject: Subject):
        measured = run(subject, "static:1")
        assert measured.kl < 1e-6
        assert measured.output == run(subject, "dense").output
        assert measured.computed_percent == 100.0


class TestCompress:
    def test_text_is_shorter_and_the_question_stays(self, subject: Subject):
        session, _ = prefilled(subject, "compress:0.6")
        text = subject.decode(session.ids.tolist())
        assert text.endswith("Question: where does Tom the cat live?\nAnswer:")
        assert 0.5 * TOKENS < session.ids.numel() <= math.ceil(0.6 * TOKENS)
        kept = "".join(TEXT[token] for token in session.kept()[0].tokens)
        assert kept.split() == text.split()
        assert session.computed_percent() == pytest.approx(100 * session.ids.numel() / TOKENS)
        assert session.operations() > subject.dense_operations(TOKENS)

    def test_keeping_everything_is_dense(self, subject: Subject):
        assert run(subject, "compress:1").kl < 1e-6

    def test_surprise(self, subject: Subject):
        ids = subject.encode(QA).ids
        with torch.no_grad():
            logits = subject.model(ids[None]).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        for chunk in (1, 7, TOKENS, 1000):
            got = subject.surprise(ids, chunk)
            assert got[0] == float("inf")
            torch.testing.assert_close(got[1:], expected, atol=1e-3, rtol=1e-4)

    def test_words(self):
        text = "  One two\n\nthree four"
        words = split_words(text)
        assert words == ["  One ", "two\n\n", "three ", "four"]
        assert owners(words, ((0, 2), (2, 5), (5, 9), (9, 11), (11, 16), (16, 21))) == [
            0, 0, 1, 1, 2, 3,
        ]  # fmt: skip
        assert join_words(words, [True, False, True, True]) == "  One\nthree four"
        assert join_words(words, [True] * 4) == text

    def test_least_surprising_words_go(self):
        surprise = torch.tensor([float("inf"), 1.0, 5.0, 3.0, 9.0, 0.1])
        owner = [0, 1, 1, 2, 3, 4]  # means: inf, 3, 3, 9, 0.1
        assert choose_words(surprise, owner, 5, protected=4, budget=4) == [
            True, False, True, True, True,
        ]  # fmt: skip
        assert choose_words(surprise, owner, 5, protected=3, budget=1) == [False] * 3 + [True] * 2
