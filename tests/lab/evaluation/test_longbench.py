"""LongBench: small files in its format, its rules for prompts and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.lab.evaluation import DATA_SETS, Subject, cut_prompts, read_longbench, score
from lazyllm_ext.lab.evaluation.longbench import cut_middle, parse
from lazyllm_ext.lab.evaluation.longbench_prompts import PROMPTS

from .conftest import QA

Run = Callable[..., Any]

# The published limits of the answers, and which prompts are not a user's turn.
LIMITS = {
    "narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "hotpotqa": 32, "2wikimqa": 32,
    "musique": 32, "gov_report": 512, "qmsum": 512, "multi_news": 512, "trec": 64, "triviaqa": 32,
    "samsum": 128, "passage_count": 32, "passage_retrieval_en": 32, "lcc": 64, "repobench-p": 64,
}  # fmt: skip
GOES_ON = {"trec", "triviaqa", "samsum", "lcc", "repobench-p"}
CLASSES = ["Food", "Date", "Other entity", "Entity"]


def line(name: str, number: int = 0, **changes: Any) -> dict[str, Any]:
    """One line of LongBench's file of a data set."""
    fields = {
        "input": "Where does Tom live?",
        "context": "Tom lives in Rome {near} the river.",
        "answers": ["Rome", "in Rome"],
        "length": 7,
        "dataset": name,
        "language": "en",
        "all_classes": CLASSES if name == "trec" else None,
        "_id": f"{number:08x}",
    }
    return {**fields, **changes}


def write(folder: Path, name: str, *lines: Any) -> None:
    texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in lines]
    (folder / f"{name}.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


@pytest.fixture
def longbench(tmp_path: Path) -> Path:
    """Two data sets of two items each, and files that are not LongBench's."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, "hotpotqa", line("hotpotqa"), line("hotpotqa", 1, context="Tom is in Rome. " * 9))
    trec = {"input": "Question: When?\nType:", "answers": ["Date"]}
    write(folder, "trec", line("trec", **trec), line("trec", 1, **trec))
    write(folder, "dureader", "{not read")
    return folder


def test_the_published_data_sets():
    assert {name: own.max_new_tokens for name, own in DATA_SETS.items()} == LIMITS
    assert {name for name, own in DATA_SETS.items() if not own.chat} == GOES_ON
    by_category: dict[str, int] = {}
    for own in DATA_SETS.values():
        by_category[own.category] = by_category.get(own.category, 0) + 1
    assert sorted(by_category.values()) == [2, 2, 3, 3, 3, 3]
    assert set(PROMPTS) == set(DATA_SETS)


@pytest.mark.parametrize("name", DATA_SETS)
def test_prompt_has_context_and_question(name: str):
    item = parse(json.dumps(line(name)), "f:1", name)
    assert item.prompt.count("Tom lives in Rome {near} the river.") == 1
    without = {"gov_report", "multi_news", "passage_count", "lcc"}  # their input is empty
    assert item.prompt.count("Where does Tom live?") == (name not in without)
    assert (item.task, item.id) == (name, f"{name}:00000000")
    assert item.answers == ("Rome", "in Rome")
    assert item.classes == (tuple(CLASSES) if name == "trec" else ())


def test_empty_input_is_no_question():
    item = parse(json.dumps(line("gov_report", input="")), "f:1", "gov_report")
    assert item.question is None


def test_reading_a_folder(longbench: Path):
    read = read_longbench(longbench)
    assert [item.id for item in read.tasks.items] == [
        "hotpotqa:00000000", "hotpotqa:00000001", "trec:00000000", "trec:00000001",
    ]  # fmt: skip
    assert len(read.missing) == 14
    read = read_longbench(longbench, ["trec"])
    assert {item.task for item in read.tasks.items} == {"trec"}
    assert read.missing == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "musique"}, "dataset: expected trec, got 'musique'"),
        ({"answers": []}, "answers: expected at least one answer, got none"),
        ({"answers": "Date"}, "answers: expected a list of texts, got 'Date'"),
        ({"all_classes": None}, "all_classes: expected the classes, got none"),
        ({"context": 3}, "context: expected a text, got 3"),
        ({"_id": None}, "_id: expected a text, got None"),
    ],
)
def test_broken_line_is_named_and_left_out(longbench: Path, change: Any, message: str):
    write(longbench, "trec", line("trec"), line("trec", 1, **change))
    tasks = read_longbench(longbench, ["trec"]).tasks
    assert len(tasks.items) == 1
    assert tasks.faults == (f"{longbench / 'trec.jsonl'}:2: {message}",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["trec", "hotpot"], "datasets: expected some of narrativeqa, qasper, "),
        (["trec", "trec"], "datasets: expected each name once, got 'trec' twice"),
        (["qasper"], "longbench: expected qasper.jsonl in "),
    ],
)
def test_wrong_names(longbench: Path, names: list[str], message: str):
    with pytest.raises(ValueError) as error:
        read_longbench(longbench, names)
    assert str(error.value).startswith(message)


def test_folder_without_longbench(tmp_path: Path):
    with pytest.raises(ValueError, match="got none in"):
        read_longbench(tmp_path)
    with pytest.raises(ValueError, match=r"^longbench: no such folder: "):
        read_longbench(tmp_path / "none")


class TestCut:
    """The tokenizer has a token for each byte, the model a context of 256."""

    def test_first_and_last_half_stay(self, subject: Subject):
        assert cut_middle(subject, "abcdefghij", 6) == "abchij"
        assert cut_middle(subject, "abcdefghij", 7) == "abchij"
        assert cut_middle(subject, "abcdefghij", 10) == "abcdefghij"

    def test_seam_inside_a_letter(self, subject: Subject):
        """Both halves hold a part of a letter of two bytes, and so all of it: less stays."""
        cut = cut_middle(subject, "aébbbbéa", 4)
        assert subject.tokens(cut).ids.numel() <= 4
        assert cut == "aa"

    def test_room_for_the_answer(self, subject: Subject):
        item = replace(QA, prompt="x" * 300, max_new_tokens=100)
        assert len(cut_prompts(subject, [item])[0].prompt) == 256 - 100
        assert len(cut_prompts(subject, [item], 50)[0].prompt) == 50
        assert len(cut_prompts(subject, [item], 200)[0].prompt) == 256 - 100
        short = replace(item, prompt="x" * 9)
        assert cut_prompts(subject, [short]) == [short]

    def test_answer_that_fills_the_context(self, subject: Subject):
        item = replace(QA, max_new_tokens=512)
        assert cut_prompts(subject, [item]) == [item]

    def test_before_the_chat_template(self, chat_folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(chat_folder)
        chat = Subject(model, AutoTokenizer.from_pretrained(chat_folder))
        item = replace(QA, prompt="x" * 300, max_new_tokens=100, chat=True)
        cut = cut_prompts(chat, [item])[0]
        assert chat.encode(cut).ids.numel() == 256 - 100
        assert chat.encode(cut).text == f"<u>{cut.prompt}<a>"

    def test_limit_of_one(self, subject: Subject):
        with pytest.raises(ValueError, match=r"^max_length: expected at least 2 tokens, got 1$"):
            cut_prompts(subject, [QA], 1)


@pytest.mark.parametrize(
    ("metric", "output", "answer", "expected"),
    [
        ("f1_first_line", "\nRome\nPassage: more", "Rome", 1.0),
        ("rougeL_first_line", " the cat sat\nDialogue: x", "the cat sat", 1.0),
        ("numbers", "There are 7, or 8.", "7", 0.5),
        ("numbers", "Paragraph 12", "Paragraph 12", 1.0),
        ("numbers", "Paragraph 112", "Paragraph 12", 0.0),
        ("numbers", "none", "7", 0.0),
        ("numbers", "7", "", 0.0),
        ("code_line", "# first\n\n    x = 1\n", "    x = 1", 1.0),
        ("code_line", "```\n// c\nx = 1 // d\nx = 2", "x = 1", 2 * 4 / 10),
        ("code_line", "  a", "a", 2 / 4),  # indentation counts
        ("code_line", "# nothing else", "a", 0.0),
        ("classes_first_line", " Date\nFood", "Date", 1.0),
        ("classes_first_line", "Date or Food", "Date", 0.5),
        ("classes_first_line", "Food", "Date", 0.0),
        ("classes_first_line", "Other Entity", "Entity", 1.0),  # written in another way
        ("classes_first_line", "Other entity", "Other entity", 1.0),
    ],
)
def test_metrics(metric: str, output: str, answer: str, expected: float):
    assert score(metric, output, [answer], CLASSES) == pytest.approx(expected)


def test_class_inside_the_answers_name_does_not_count():
    assert score("classes_first_line", "red wine", ["red wine"], ["red", "wine", "red wine"]) == 1.0
    assert score("classes_first_line", "red wine", ["red"], ["red", "red wine"]) == 0.5


def test_command(run: Run, folder: Path, longbench: Path, tmp_path: Path):
    output = tmp_path / "out"
    ran = run("eval", folder, "--longbench", longbench, "--max-length", 90, "--contenders",
              "dense,static:0.5", "--output", output)  # fmt: skip
    assert ran.status == 0, ran.stderr
    assert "mean of categories" in ran.stdout
    assert ran.stderr.startswith(f"lazyllm-ext: not in {longbench}: narrativeqa, qasper, ")
    rows = [json.loads(text) for text in (output / "records.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert {row["prompt_tokens"] for row in rows if row["task"] == "hotpotqa"} == {90}
    assert {row["category"] for row in rows} == {"multi-document QA", "few-shot"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--tasks, --longbench: expected one of them, got neither"),
        (["--longbench", "x", "--tasks", "y"], "--tasks, --longbench: expected one of them, got b"),
        (["--tasks", "y", "--datasets", "trec"], "--datasets: expected --longbench with it, got "),
        (["--tasks", "y", "--max-length", "9"], "--max-length: expected --longbench with it, got "),
        (["--longbench", "x", "--max-length", "1"], "Invalid value for '--max-length': "),
        (["--longbench", "nowhere"], "--longbench: no such folder: 'nowhere'"),
    ],
)  # fmt: skip
def test_bad_options(run: Run, folder: Path, tmp_path: Path, options: list[str], message: str):
    ran = run("eval", folder, "--output", tmp_path / "out", *options)
    assert ran.status == 2
    assert ran.stderr.startswith(f"lazyllm-ext: {message}")
    assert ran.stderr.count("\n") == 1
