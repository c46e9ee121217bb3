"""Marks of the transformers tests, and what several of them share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from lazyllm_ext.demo.model import cache_folder

from .tiny import tiny_model


def _real_models() -> dict[str, Path]:
    """Folders of real models: those that variables name, and the demo model if it is there."""
    folders = {
        name: os.environ.get(f"LAZYLLM_{name.upper()}") for name in ("smollm2", "qwen", "gemma")
    }
    demo = cache_folder() / "smollm2-135m-instruct"
    if folders["smollm2"] is None and demo.is_dir():
        folders["smollm2"] = str(demo)
    return {name: Path(folder) for name, folder in folders.items() if folder}


REAL_MODELS = _real_models()
collect_ignore = [] if REAL_MODELS else ["test_real.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: runs a real model, found by an environment variable")


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny matrices are much slower on several threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("real") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> nn.Module:
    """A tiny Llama, fresh for every test."""
    return tiny_model("llama")


@pytest.fixture
def ids() -> Tensor:
    """Three prompts of 13 tokens."""
    return torch.randint(3, 83, (3, 13), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def tokenizer() -> Any:
    """A word is a token, a letter or two of them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<pad>", "<s>", "</s>", *letters, *(f"{a}{b}" for a in letters[:3] for b in letters)]
    table = {word: number for number, word in enumerate(words[:83])}
    model = models.WordLevel(table, unk_token="<pad>")
    words_of = tokenizers.Tokenizer(model)
    words_of.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_of, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )
