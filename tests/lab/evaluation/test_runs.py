"""Runs: records, resumption, summary, report, page."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.lab.evaluation import (
    Evaluation,
    EvaluationReport,
    Record,
    Records,
    Subject,
    model_digest,
    parse_contenders,
    summarize,
    write_page,
    write_report,
)
from lazyllm_ext.lab.evaluation.measure import profile
from lazyllm_ext.lab.evaluation.page import levels
from lazyllm_ext.lab.evaluation.report import cells
from lazyllm_ext.lab.evaluation.sessions import Kept
from lazyllm_ext.lab.evaluation.summary import bootstrap, generation_speedup, heading

from .conftest import LM, QA, TEXT

SETTING = {"dtype": "float32", "device": "cpu", "chat": True, "answer_prefix": False}


def evaluation(subject: Subject, folder: Path, specs: list[str], **changes: Any) -> Evaluation:
    """Two items under these contenders."""
    setting = {**SETTING, **changes}
    return Evaluation(subject, [QA, LM], parse_contenders(specs), Records(folder), "m", setting)


def results(done: Evaluation) -> list[tuple[Any, ...]]:
    """What does not depend on the clock."""
    return [
        (r.contender, r.item, r.score, r.scores, r.output, r.kl, r.computed_percent, r.profile)
        for r in done.finished()
    ]


class TestResuming:
    def test_goes_on_where_it_was(self, subject: Subject, tmp_path: Path, schedule: Path):
        specs = ["static:0.5", "dense", str(schedule)]
        whole = evaluation(subject, tmp_path / "whole", specs)
        whole.run()
        part = evaluation(subject, tmp_path / "part", specs)

        class Killed(BaseException):
            pass

        def kill(job: Any, record: Record) -> None:
            if len(part.pending()) == 4:
                raise Killed

        with pytest.raises(Killed):
            part.run(kill)
        file = part.records.path
        with file.open("ab") as open_file:
            open_file.write(b'{"key": "half a li')  # as a kill in the midst of a write leaves it
        again = evaluation(subject, tmp_path / "part", specs)
        jobs = [(job.item.id, job.contender.name) for job in again.pending()]
        assert jobs == [("qa-0", "pruned"), ("lm-0", "dense"), ("lm-0", "static:0.5"),
                        ("lm-0", "pruned")]  # fmt: skip
        done: list[str] = []
        again.run(lambda job, record: done.append(record.contender))
        assert done == ["pruned", "dense", "static:0.5", "pruned"]
        assert again.pending() == []
        assert results(again) == results(whole)
        assert len(file.read_bytes().splitlines()) == 6
        assert all(json.loads(line) for line in file.read_bytes().splitlines())

    def test_key_holds_all_that_decides(self, subject: Subject, tmp_path: Path, schedule: Path):
        first = evaluation(subject, tmp_path, [str(schedule)])
        first.run()
        count = len(first.items)
        assert len(evaluation(subject, tmp_path, [str(schedule)]).pending()) == 0
        assert len(evaluation(subject, tmp_path, [str(schedule)], dtype="x").pending()) == count
        other = schedule.with_name("renamed.json")
        other.write_text(schedule.read_text())
        assert [r.contender for r in evaluation(subject, tmp_path, [str(other)]).finished()] == [
            "renamed"
        ] * count
        schedule.write_text(schedule.read_text().replace("0.5", "0.6"))
        assert len(evaluation(subject, tmp_path, [str(schedule)]).pending()) == count

    def test_seeds_are_averaged(self, subject: Subject, tmp_path: Path, schedule: Path):
        done = evaluation(subject, tmp_path, [f"random:{schedule}"])
        done.run()
        record = done.finished()[1]
        assert len(record.scores) == 5
        assert len(set(record.scores)) > 1
        assert record.score == pytest.approx(sum(record.scores) / 5)

    def test_contender_that_does_not_fit(self, subject: Subject, tmp_path: Path):
        file = tmp_path / "deep.json"
        file.write_text('{"boundaries": [{"layer": 40, "keep": 0.5}]}')
        bad = evaluation(subject, tmp_path, ["dense", str(file)])
        with pytest.raises(ValueError, match="got layer 40, which is past the end"):
            bad.run()
        assert bad.finished() == []

    def test_schedule_for_each_kind(
        self,
        subject: Subject,
        tmp_path: Path,
        schedule: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        folder = tmp_path / "tuned"
        folder.mkdir()
        (folder / "qa.json").write_text(schedule.read_text())
        with pytest.raises(ValueError) as error:
            evaluation(subject, tmp_path, [str(folder)])
        assert str(error.value) == (
            "contenders: tuned: expected a schedule for every task, or for its category, got none "
            "for lm (there are: qa)"
        )
        lm = folder / "lm.json"
        lm.write_text('{"boundaries": [{"layer": 40, "keep": 0.5}]}')
        with pytest.raises(ValueError, match="got layer 40, which is past the end"):
            evaluation(subject, tmp_path, [str(folder)]).run()
        lm.write_text('{"boundaries": [{"layer": 2, "keep": 0.5}]}')
        done = evaluation(subject, tmp_path, [str(folder)])
        done.run()
        assert [record.contender for record in done.finished()] == ["tuned", "tuned"]
        layers = [[entry["layer"] for entry in r.profile] for r in done.finished()]
        assert layers == [[1, 3], [2]]
        assert "<h2>tuned: qa</h2>" in write_page(subject, QA, done.contenders)
        report = EvaluationReport("tiny", SETTING, done.contenders, "tuned", done.finished(), [])
        drawn: list[str] = []
        monkeypatch.setattr(
            "lazyllm_ext.lab.evaluation.plots._draw_kept",
            lambda panel, title, records: drawn.append(f"{title} {len(records)}"),
        )
        assert (tmp_path / "kept_tokens.png") in write_report(report, tmp_path)
        assert drawn == ["tuned: qa 1", "tuned: lm 1"]
        # What ran under a schedule's own name counts, and only the changed one runs anew.
        alone = evaluation(subject, tmp_path, [str(schedule)])
        assert [record.item for record in alone.finished()] == ["qa-0"]
        both = evaluation(subject, tmp_path / "both", [str(folder), str(schedule)])
        ran = [(job.item.id, job.contender.name) for job in both.pending()]
        assert ran == [("qa-0", "tuned"), ("lm-0", "tuned"), ("lm-0", "pruned")]
        lm.write_text('{"boundaries": [{"layer": 2, "keep": 0.6}]}')
        again = evaluation(subject, tmp_path, [str(folder)])
        assert [job.item.id for job in again.pending()] == ["lm-0"]

    def test_item_that_does_not_fit(self, subject: Subject, tmp_path: Path):
        long = replace(QA, id="long", prompt=TEXT * 2)
        both = Evaluation(subject, [long, QA], parse_contenders(["dense"]), Records(tmp_path), "m",
                          SETTING)  # fmt: skip
        assert [item.id for item in both.items] == ["qa-0"]
        assert both.skipped == [
            "long: expected at most 256 tokens, the model's context, with the answer; got "
            f"{2 * len(TEXT)} and 32"
        ]

    def test_output_that_is_a_file(self, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError) as error:
            Records(tmp_path / "file")
        assert str(error.value) == f"output: cannot use {str(tmp_path / 'file')!r}: File exists"


def test_model_digest(folder: Path, chat_folder: Path, tmp_path: Path):
    assert model_digest(folder) == model_digest(folder)
    assert model_digest(folder) != model_digest(chat_folder)
    other = shutil.copytree(folder, tmp_path / "other")
    assert model_digest(folder) == model_digest(other)
    (weights,) = other.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_digest(folder) != model_digest(other)


def record(contender: str, item: str, score: float, **fields: Any) -> Record:
    """A record with round figures."""
    values: dict[str, Any] = {
        "key": f"{contender} {item}", "contender": contender, "item": item, "task": "t",
        "category": "c", "length": 100, "prompt_tokens": 100, "score": score, "scores": [score],
        "also": {}, "output": "", "new_tokens": 3, "ttft_seconds": 1.0, "decode_seconds": 1.0,
        "computed_percent": 100.0, "operations": 10, "same_first_token": 1.0, "kl": 0.0,
        "profile": [], **fields,
    }  # fmt: skip
    return Record(**values)


class TestSummary:
    def test_category_is_the_mean_of_its_tasks(self):
        """Three items in one task, one in the other; and a second category."""
        records = []
        for number, (score, task, category) in enumerate(
            [(0.0, "a", "x"), (0.3, "a", "x"), (0.6, "a", "x"), (0.9, "b", "x"), (1.0, "d", "y")]
        ):
            fields = {"task": task, "category": category}
            records.append(record("dense", str(number), 1.0, **fields))
            fast = {"ttft_seconds": 0.5, "operations": 4, "computed_percent": 40.0, "kl": 0.1}
            records.append(record("ours", str(number), score, **fields, **fast))
        rows = {(row.category, row.contender): row for row in
                summarize(records, ["dense", "ours"], "dense")}  # fmt: skip
        assert list(rows) == [
            ("x", "dense"), ("x", "ours"), ("y", "dense"), ("y", "ours"), ("all", "dense"),
            ("all", "ours"),
        ]  # fmt: skip
        assert rows["x", "ours"].score == pytest.approx((0.3 + 0.9) / 2)
        assert rows["all", "ours"].score == pytest.approx((0.6 + 1.0) / 2)
        assert rows["all", "ours"].difference == pytest.approx(-0.2)
        assert rows["all", "ours"].relative == pytest.approx(0.8)
        assert rows["x", "ours"].ttft_speedup == 2.0
        assert rows["x", "ours"].operations_ratio == 2.5
        assert rows["x", "ours"].items == 4
        assert {row.interval for row in rows.values()} == {None}  # a task of one item in each

    def test_interval_of_several_items(self):
        records = []
        for item, score in (("1", 0.5), ("2", 0.3)):
            records += [record("dense", item, 1.0), record("ours", item, score)]
        dense, ours = summarize(records, ["dense", "ours"], "dense")[:2]
        assert dense.interval == (0.0, 0.0)
        assert ours.interval == pytest.approx((-0.7, -0.5))
        assert cells(ours, "dense")["difference [95 %]"] == "-60.00 [-70.00, -50.00]"
        alone = summarize(records[:2], ["dense", "ours"], "dense")[1]
        assert cells(alone, "dense")["difference [95 %]"] == "-50.00"

    def test_all_lengths_come_last(self):
        """Two items of one length and one of the other: the task's mean is over the three."""
        records = []
        for item, length, score in (("1", 200, 0.9), ("2", 100, 0.3), ("3", 100, 0.6)):
            records += [record("dense", item, 1.0, length=length),
                        record("ours", item, score, length=length)]  # fmt: skip
        rows = summarize(records, ["ours", "dense"], "dense")
        ours = [row for row in rows if row.contender == "ours" and row.category == "all"]
        assert [(row.length, row.items) for row in ours] == [(100, 2), (200, 1), ("all", 3)]
        assert [row.score for row in ours] == pytest.approx([0.45, 0.9, 0.6])
        one = summarize([r for r in records if r.length == 100], ["ours", "dense"], "dense")
        assert {row.length for row in one} == {100}
        titles = [heading(length) for length in ("all", None, 2000)]
        assert titles == ["All lengths", "Items without a nominal length", "2,000 tokens"]

    def test_only_items_that_all_have(self):
        records = [record("dense", "1", 1.0), record("ours", "1", 0.5), record("dense", "2", 0.0)]
        rows = summarize(records, ["dense", "ours"], "dense")
        assert {row.items for row in rows} == {1}
        assert rows[0].score == 1.0

    def test_generation_speedup_of_as_many_tokens(self):
        dense = record("dense", "1", 1.0, new_tokens=5, ttft_seconds=2.0, decode_seconds=4.0)
        # A short answer is not a fast one: 1 s and 4 steps of 0.5 s.
        short = record("ours", "1", 1.0, new_tokens=2, ttft_seconds=1.0, decode_seconds=0.5)
        assert generation_speedup(short, dense) == pytest.approx(6.0 / 3.0)
        single = replace(short, new_tokens=1, decode_seconds=0.0)
        assert generation_speedup(single, dense) is None
        assert generation_speedup(single, replace(dense, new_tokens=1, decode_seconds=0.0)) == 2.0
        assert generation_speedup(short, replace(dense, new_tokens=0)) is None

    def test_bootstrap_is_paired_and_repeats(self):
        """Differences of ±0.1 around 0.2 on scores that vary by 1: a narrow interval."""
        chance = random.Random(3)
        pairs = []
        for number in range(100):
            base = chance.random()
            ours = record("ours", str(number), base + 0.2 + chance.uniform(-0.1, 0.1))
            pairs.append((ours, record("dense", str(number), base)))
        low, high = bootstrap(pairs) or (0.0, 0.0)
        assert (low, high) == bootstrap(pairs)
        # The standard error is 0.2 / √12 / √100 = 0.0058; 95 % are ± 1.96 of them.
        assert 0.17 < low < 0.2 < high < 0.23
        assert high - low == pytest.approx(2 * 1.96 * 0.0058, rel=0.2)


class Page(HTMLParser):
    """Text of a page's <pre>, its marked spans, and whatever it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.texts, self.marked, self.fetched = False, [""], 0, []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        if tag == "pre":
            self.inside = True
            self.texts.append("")
        self.marked += self.inside and tag == "span"

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "pre"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def test_page_shows_the_whole_prompt(subject: Subject, schedule: Path):
    item = replace(QA, prompt=TEXT.replace("Tom", "<b>&amp;"))
    html = write_page(subject, item, parse_contenders(["dense", str(schedule), "compress:0.5"]))
    page = Page()
    page.feed(html)
    assert page.texts[1:] == [item.prompt] * 2
    assert page.marked > 10
    assert page.fetched == []
    assert "Every token is kept in every layer." in html


def test_levels_and_profile():
    kept = [Kept(1, [0, 1, 2, 50, 99]), Kept(3, [0, 99])]
    level = levels(100, kept)
    assert [level[token] for token in (0, 1, 50, 51, 99)] == [2, 1, 1, 0, 2]
    first, second = profile(kept, 100)
    assert (first["layer"], second["layer"]) == (1, 3)
    assert first["shares"][0] == 1.0
    assert first["shares"][1] == 0.5
    assert sum(second["shares"]) == 1.0
    assert len(first["shares"]) == 50


def test_report_files(subject: Subject, tmp_path: Path, schedule: Path):
    done = evaluation(subject, tmp_path, ["dense", str(schedule)])
    done.run()
    report = EvaluationReport(
        "tiny", SETTING, done.contenders, "dense", done.finished(), ["a.jsonl:3: broken | line"]
    )
    files = write_report(report, tmp_path)
    names = ["report.json", "report.md", "score_vs_ttft.png", "kept_tokens.png"]
    assert [file.name for file in files] == names
    for file in files[2:]:
        assert file.read_bytes().startswith(b"\x89PNG")
    data = json.loads(files[0].read_text())
    assert data["against"] == "dense"
    assert data["contenders"][1]["schedule"]["window"] == 4
    assert [row["category"] for row in data["rows"]][::2] == [
        "questions", "language-modelling", "all",
    ]  # fmt: skip
    markdown = files[1].read_text()
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert table[0].startswith("| category | contender | items | score | relative | difference")
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 6
    assert r"- a.jsonl:3: broken \| line" in markdown
