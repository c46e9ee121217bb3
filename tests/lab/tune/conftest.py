"""A tiny model in a folder, and prompts for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.conftest import chat_folder, folder, run

from lab.evaluation.conftest import one_thread, subject
from lazyllm_ext.lab.evaluation import Item
from lazyllm_ext.lab.tune import read_prompts

__all__ = ["chat_folder", "folder", "one_thread", "run", "subject"]  # fixtures

# 160 to 190 tokens, one for each byte.
_TOWNS = ("Rome", "Oslo", "Lima", "Bern")
_TEXT = (
    "The quick brown fox jumps over the lazy dog.\n"
    "A cat named Tom lives in {town}, near the river; he sleeps.\n"
    "Nobody in {town} has ever seen him awake.\n"
    "Question: where does Tom the cat live?\nAnswer:"
)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Four prompts, as JSON lines."""
    lines = [json.dumps({"prompt": _TEXT.format(town=town), "more": 1}) for town in _TOWNS]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def items(prompts: Path) -> tuple[Item, ...]:
    return read_prompts(prompts).items
