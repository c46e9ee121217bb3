"""A tiny model in a folder, as the command line's tests have it, and items for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import asking, chat_folder, folder, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazyllm_ext.lab.evaluation import Item, Subject
from lazyllm_ext.lab.evaluation.measure import make_reference
from lazyllm_ext.lab.evaluation.sessions import PlainSession

__all__ = ["asking", "chat_folder", "folder", "run"]  # fixtures

# 150 tokens, one for each byte.
TEXT = (
    "The quick brown fox jumps over the lazy dog.\n"
    "A cat named Tom lives in Rome, near the river; he sleeps.\n"
    "Question: where does Tom the cat live?\nAnswer:"
)
QA = Item(
    id="qa-0",
    task="qa",
    category="questions",
    prompt=TEXT,
    question="Question: where does Tom the cat live?",
    answers=("Rome",),
    metric="f1",
    max_new_tokens=5,
    also_metrics=("contains",),
)
LM = Item(
    id="lm-0",
    task="lm",
    category="language-modelling",
    prompt=TEXT,
    answers=(" and no more",),
    metric="nll",
    max_new_tokens=0,
)
PRUNED: dict[str, Any] = {
    "boundaries": [{"layer": 1, "keep": 0.5}, {"layer": 3, "keep": 0.2}],
    "window": 4,
    "pool": 3,
    "protect_first": 2,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def few_reference_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter continuation of the dense model: most of the time goes there."""
    monkeypatch.setattr("lazyllm_ext.lab.evaluation.measure.REFERENCE_TOKENS", 6)


@pytest.fixture(scope="session")
def subject(folder: Path) -> Subject:
    """The tiny Llama of 5 layers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Subject(model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    """PRUNED in a file."""
    file = tmp_path / "pruned.json"
    file.write_text(json.dumps(PRUNED), encoding="utf-8")
    return file


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three questions and one text to score, as JSON lines."""
    items = [replace(QA, id=f"qa-{n}", prompt=TEXT.replace("Rome", name)) for n, name in _TOWNS]
    lines = [json.dumps({**vars(item), "target_tokens": 100}) for item in (*items, LM)]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


_TOWNS = ((0, "Rome"), (1, "Oslo"), (2, "Lima"))


def reference_for(subject: Subject, item: Item) -> Any:
    """The dense model's continuation of an item's prompt."""
    return make_reference(subject, PlainSession(subject, subject.encode(item).ids))
