"""A prefill that is read once, copied for every question, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lazyllm_ext

from .tiny import PRUNING, assert_same_generation, generate, keep_all, left_padded, tiny_model

QUESTIONS = [[11, 12, 13], [40, 41], [70, 71, 72, 73, 74]]


def _questions(document: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The document and one of the questions each."""
    batch = document["input_ids"].size(0)
    asked = []
    for question in QUESTIONS:
        ids = torch.cat([document["input_ids"], torch.tensor([question] * batch)], dim=1)
        mask = torch.ones_like(ids)
        mask[:, : document["input_ids"].size(1)] = document["attention_mask"]
        asked.append({"input_ids": ids, "attention_mask": mask})
    return asked


def _documents(ids: Tensor) -> dict[str, dict[str, Tensor]]:
    return {
        "one": {"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])},
        "padded": left_padded([ids[0], ids[1, :5], ids[2, :9]]),
    }


@pytest.mark.parametrize("document", ["one", "padded"])
def test_as_a_fresh_run_with_nothing_dropped(model: nn.Module, ids: Tensor, document: str) -> None:
    lazy = lazyllm_ext.apply(model, keep_all(model))
    prompt = _documents(ids)[document]
    cache = lazy.prefill(**prompt)
    for asked in _questions(prompt):
        got = generate(model, **asked, past_key_values=cache.copy())
        assert_same_generation(got, generate(model, **asked))
        assert lazy.report().prompt_tokens == int(asked["attention_mask"].sum())
    assert cache.get_seq_length() == 13


@pytest.mark.parametrize("document", ["one", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_saved_and_loaded(name: str, document: str, ids: Tensor, tmp_path: Path) -> None:
    """In another process: another instance of the model. Every question, to the last bit."""
    schedule = PRUNING if name == "llama" else {"boundaries": [{"layer": 1, "keep": 0.4}]}
    lazy = lazyllm_ext.apply(tiny_model(name), schedule)
    prompt = _documents(ids)[document]
    cache = lazy.prefill(**prompt)
    path = tmp_path / "document.safetensors"
    lazy.save(cache, path)
    other = lazyllm_ext.apply(tiny_model(name), {**schedule, "name": "the same"})
    loaded = other.load(path)
    assert loaded.get_seq_length() == 13
    assert loaded.nbytes() <= cache.nbytes()
    for asked in _questions(prompt):
        expected = generate(lazy.model, 20, **asked, past_key_values=cache.copy())
        got = generate(other.model, 20, **asked, past_key_values=loaded.copy())
        assert_same_generation(got, expected, tolerance=0)
        assert other.report().tokens_per_stage == lazy.report().tokens_per_stage


def test_after_turns_and_crops(model: nn.Module, ids: Tensor, tmp_path: Path) -> None:
    """A conversation is saved as well; a crop leaves holes in the stores."""
    lazy = lazyllm_ext.apply(model, PRUNING)
    cache = generate(model, input_ids=ids[:2]).past_key_values
    cache.crop(-4)
    lazy.save(cache, tmp_path / "turn.safetensors")
    loaded = lazy.load(tmp_path / "turn.safetensors")
    for past in (cache, loaded):
        past.reorder_cache(torch.tensor([1, 0, 1]))
    tokens = ids[:, :6]
    got, expected = (
        model(tokens, past_key_values=past, logits_to_keep=1).logits for past in (loaded, cache)
    )
    assert torch.equal(got, expected)


class TestRefused:
    @pytest.fixture
    def lazy(self, model: nn.Module) -> Any:
        return lazyllm_ext.apply(model, PRUNING)

    @pytest.fixture
    def path(self, lazy: Any, ids: Tensor, tmp_path: Path) -> Path:
        path = tmp_path / "document.safetensors"
        lazy.save(lazy.prefill(ids), path)
        return path

    @pytest.mark.parametrize("change", ["weights", "family", "dtype", "rope"])
    def test_another_model(self, path: Path, change: str) -> None:
        other = tiny_model("qwen3" if change == "family" else "llama")
        if change == "weights":
            other.model.layers[3].mlp.up_proj.weight.data[5] += 0.5
        if change == "rope":
            other.model.rotary_emb.inv_freq.mul_(0.5)
        if change == "dtype":
            other = other.to(torch.bfloat16)
        with pytest.raises(ValueError, match="expected a prefill of this model"):
            lazyllm_ext.apply(other, PRUNING).load(path)

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"window": 4}, "window"), ({"boundaries": PRUNING["boundaries"][:1]}, "boundaries")],
    )
    def test_another_schedule(self, path: Path, change: Any, named: str) -> None:
        lazy = lazyllm_ext.apply(tiny_model("llama"), {**PRUNING, **change})
        with pytest.raises(ValueError, match=f"schedule that is applied, got another {named}"):
            lazy.load(path)

    def test_other_files(self, lazy: Any, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="expected a saved prefill, got no file"):
            lazy.load(tmp_path / "none.safetensors")
        text = tmp_path / "text"
        text.write_text("not tensors at all")
        with pytest.raises(ValueError, match="got another file"):
            lazy.load(text)
        save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
        with pytest.raises(ValueError, match="got another file"):
            lazy.load(tmp_path / "weights.safetensors")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("keys.1", None, r"too few or too many: keys\.1"),
            ("values.2", lambda x: x[:-1], r"values\.2: got shape"),
            ("slot.1", lambda x: x + 999, r"slot\.1: names a row that does not exist"),
            ("importance.0", lambda x: x.double(), r"importance\.0: got torch\.float64"),
            ("length", lambda x: x + 99, "length: got"),
        ],
    )
    def test_a_damaged_file(
        self, lazy: Any, path: Path, name: str, change: Any, message: str
    ) -> None:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["schedule"])["window"] == 2
        whole = tensors.pop(name)
        if change is not None:
            tensors[name] = change(whole).contiguous()
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=message):
            lazy.load(path)

    def test_caches(self, lazy: Any, ids: Tensor, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="got an empty one"):
            lazy.save(lazy.new_cache(), tmp_path / "empty")
        other = lazyllm_ext.apply(tiny_model("llama"), PRUNING)
        with pytest.raises(ValueError, match="got another one's"):
            lazy.save(other.prefill(ids), tmp_path / "other")
