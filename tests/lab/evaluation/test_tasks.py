"""Reading tasks: broken lines are named and left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.lab.evaluation import choose, read_tasks
from lazyllm_ext.lab.evaluation.tasks import parse_item

from .conftest import QA

GOOD: dict[str, Any] = {
    "id": "1",
    "prompt": "Where?",
    "answers": ["Rome"],
    "metric": "f1",
    "max_new_tokens": 4,
}


def test_defaults_and_unknown_fields():
    item = parse_item(json.dumps({**GOOD, "depth": 0.5, "question": None}), "f:1", "mine")
    assert (item.task, item.category, item.chat, item.question) == ("mine", "mine", False, None)
    assert item.target_tokens is None
    assert item.answers == ("Rome",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "bleu"}, "metric: expected one of f1, contains, rougeL, edit_similarity, "
         "f1_first_line, rougeL_first_line, code_line, numbers, classification, "
         "classes_first_line, nll, got 'bleu'"),
        ({"metric": "classes_first_line"}, "classes: expected the classes of classes_first_line, "
         "got none"),
        ({"metric": "classification"}, "classes: expected the classes of classification, got none"),
        ({"answers": "Rome"}, "answers: expected a list of texts, got 'Rome'"),
        ({"answers": []}, "answers: expected at least one answer, got none"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"max_new_tokens": True}, "max_new_tokens: expected a whole number of at least 0, "
         "got True"),
        ({"chat": "yes"}, "chat: expected true or false, got 'yes'"),
        ({"prompt": ""}, "prompt: expected a text, got ''"),
        ({"also_metrics": ["nll"]}, "also_metrics: expected f1, contains, rougeL, "
         "edit_similarity, f1_first_line, rougeL_first_line, code_line, numbers, classification, "
         "classes_first_line, got 'nll'"),
    ],
)  # fmt: skip
def test_wrong_field(change: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        parse_item(json.dumps({**GOOD, **change}), "file:7", "t")
    assert str(error.value) == f"file:7: {message}"


@pytest.mark.parametrize("name", ["id", "prompt", "answers", "metric", "max_new_tokens"])
def test_missing_field(name: str):
    with pytest.raises(ValueError, match=rf"^f:1: {name}: expected .*, got (nothing|None)$"):
        parse_item(json.dumps({k: v for k, v in GOOD.items() if k != name}), "f:1", "t")


def test_broken_lines_are_named_and_left_out(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    lines = [
        json.dumps(GOOD).encode(),
        b"{broken",
        b"",
        b"[1]",
        b'{"id": "\xff"}',
        json.dumps(GOOD).encode(),
        json.dumps({**GOOD, "id": "2"}).encode(),
    ]
    file.write_bytes(b"\r\n".join(lines))
    tasks = read_tasks([file])
    assert [item.id for item in tasks.items] == ["1", "2"]
    assert [fault.split(": ")[0] for fault in tasks.faults] == [f"{file}:{n}" for n in (2, 4, 5, 6)]
    assert tasks.faults[1] == f"{file}:4: expected a JSON object, got [1]"
    assert tasks.faults[2] == f"{file}:5: expected UTF-8 text, got other bytes"
    assert tasks.faults[3] == f"{file}:6: id: expected a new one, got '1' again"


def test_folder_in_the_order_of_names(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**GOOD, "id": name}))
    for other in ("notes.txt", "._a.jsonl"):
        (tmp_path / other).write_text("no item")
    tasks = read_tasks([tmp_path, tmp_path / "a.jsonl"])  # a file that is there already
    assert [(item.id, item.task) for item in tasks.items] == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize("what", ["missing", "empty folder", "no item"])
def test_nothing_to_read(tmp_path: Path, what: str):
    path = tmp_path / "tasks"
    expected = f"tasks: no such file or folder: {str(path)!r}"
    if what == "empty folder":
        path.mkdir()
        expected = f"tasks: expected *.jsonl files, got none in {str(path)!r}"
    elif what == "no item":
        path.write_text("3")
        expected = (
            "tasks: expected at least one item, got none; the first fault: "
            f"{path}:1: expected a JSON object, got 3"
        )
    with pytest.raises(ValueError) as error:
        read_tasks([path])
    assert str(error.value) == expected


def test_choose_lengths_and_limit():
    items = [
        replace(QA, id=f"{task}-{length}-{n}", task=task, target_tokens=length)
        for task in ("a", "b")
        for length in (100, 200)
        for n in range(3)
    ]
    chosen = choose(items, [200], 2).items
    assert [item.id for item in chosen] == ["a-200-0", "a-200-1", "b-200-0", "b-200-1"]
    assert len(choose(items).items) == 12
    with pytest.raises(ValueError) as error:
        choose(items, [300])
    assert str(error.value) == "lengths: got 300, expected one of the items': 100, 200"
