"""Real models, where an environment variable names their folder (see conftest.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import at_any_length
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lazyllm_ext

from .conftest import REAL_MODELS
from .tiny import assert_same_generation, generate, keep_all

pytestmark = pytest.mark.real

_TEXT = """The ferry to the island leaves from the north pier at nine in the morning. It carries
bicycles, letters and, in summer, the brass band of the fire brigade. The captain, who has been
at the wheel for thirty years, knows every sandbank by its first name. """


@cache
def _load(folder: Path) -> tuple[Any, nn.Module]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", REAL_MODELS)
def test_same_as_transformers(name: str) -> None:
    """A left-padded batch; for Gemma longer than its sliding window of 512."""
    tokenizer, model = _load(REAL_MODELS[name])
    long = _TEXT * (10 if name == "gemma" else 3)
    batch = tokenizer([long, "The capital of France is"], padding=True, return_tensors="pt")
    expected = generate(model, 4, **batch)
    for schedule in ("dense", keep_all(model)):
        with lazyllm_ext.apply(model, schedule):
            assert_same_generation(generate(model, 4, **batch), expected, tolerance=5e-4)


@pytest.mark.parametrize("name", REAL_MODELS)
def test_a_pruned_row_of_a_batch_gives_what_it_gives_alone(name: str) -> None:
    tokenizer, model = _load(REAL_MODELS[name])
    prompts = [_TEXT * 3, _TEXT]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    columns = batch["input_ids"].size(1)
    with lazyllm_ext.apply(model, at_any_length("balanced")) as lazy:
        together = generate(model, 4, **batch).sequences[:, columns:]
        assert lazy.report().prompt_computed_percent < 80
        for row, prompt in enumerate(prompts):
            alone = tokenizer(prompt, return_tensors="pt")
            sequences = generate(model, 4, **alone).sequences
            assert torch.equal(together[row], sequences[0, alone["input_ids"].size(1) :])
