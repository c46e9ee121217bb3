"""A model's folder is loaded whole, or refused with the name of what in it is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import lazyllm_ext

Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    helpers.tiny_llama().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(83)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def weights(keep: Callable[[str], bool]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        kept = {name: tensor for name, tensor in load_file(path).items() if keep(name)}
        save_file(kept, path, {"format": "pt"})

    return damage


def field(name: str, value: Any, file: str = "config.json") -> Damage:
    def damage(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**data, name: value}))

    return damage


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


LAYER = "got none for model.layers.{}.input_layernorm.weight, model.layers.{}.mlp.down_proj.weight"


def as_dtype(dtype: torch.dtype) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        name = "model.layers.2.self_attn.q_proj.weight"
        save_file({**tensors, name: tensors[name].to(dtype)}, path, {"format": "pt"})

    return damage


INTEGERS = "got others for model.layers.2.self_attn.q_proj.weight"
DAMAGED: dict[str, tuple[Damage, str]] = {
    "a layer's tensors": (weights(lambda n: ".3." not in n), LAYER.format(3, 3)),
    "the last norm": (weights(lambda n: n != "model.norm.weight"), "none for model.norm.weight"),
    "more layers": (field("num_hidden_layers", 7), LAYER.format(5, 5)),
    "fewer layers": (
        field("num_hidden_layers", 3),
        "got tensors that it does not have: model.layers.3.input_layernorm.weight",
    ),
    "another family": (
        field("model_type", "qwen3"),
        "of the Qwen3ForCausalLM that config.json describes, got none for "
        "model.layers.0.self_attn.k_norm.weight",
    ),
    "another width": (
        field("intermediate_size", 72),
        "got other shapes for model.layers.0.mlp.down_proj.weight ([48, 64] instead of [48, 72])",
    ),
    "whole numbers for weights": (as_dtype(torch.int8), INTEGERS),
    "8-bit floats for weights": (as_dtype(torch.float8_e4m3fn), INTEGERS),
    "an activation that there is not": (
        field("hidden_act", "nope"),
        "config.json: cannot be used: it has no entry 'nope'",
    ),
    "a list of no files": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": []}'),
        "model.safetensors.index.json: weight_map: expected files by tensors' names, got []",
    ),
    "half a file of weights": (
        bytes_of("model.safetensors", half),
        "model.safetensors: expected a whole safetensors file, got: ",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ": weights: cannot "),
    "no heads": (
        field("num_attention_heads", 0),
        "config.json: num_attention_heads: expected a whole number from 1 to 2147483648, got 0",
    ),
    "a layer too many by far": (field("num_hidden_layers", 10**12), "from 1 to 10000, got 10000"),
    "a text for a number": (field("rms_norm_eps", "small"), "config.json: cannot be used: "),
    "half a configuration": (bytes_of("config.json", half), "config.json: expected JSON, got "),
    # transformers drops it without a word, and with it the tokens that end an answer
    "half a generation configuration": (
        bytes_of("generation_config.json", half),
        "generation_config.json: expected JSON, got other text (",
    ),
    "a generation configuration that is no object": (
        bytes_of("generation_config.json", lambda data: b"[1]"),
        "generation_config.json: expected a JSON object, got [1]",
    ),
    "a cache of no kind that there is": (
        field("cache_implementation", "big", "generation_config.json"),
        "generation_config.json: cannot be used: Invalid `cache_implementation` (big)",
    ),
    "a mark before it": (
        bytes_of("generation_config.json", lambda data: b"\xef\xbb\xbf" + data),
        "generation_config.json: expected JSON, got other text (Unexpected UTF-8 BOM",
    ),
}
TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "an empty object": (
        bytes_of("tokenizer.json", lambda data: b"{}"),
        "tokenizer.json: expected an entry 'model', got none",
    ),
    "half of it": (bytes_of("tokenizer.json", half), "tokenizer.json: expected JSON, got other "),
    "another model": (field("model", 5, "tokenizer.json"), "tokenizer.json: "),
    "its configuration": (
        bytes_of("tokenizer_config.json", lambda data: b"[]"),
        "tokenizer_config.json: expected a JSON object, got []",
    ),
    "its longest text": (
        field("model_max_length", "many", "tokenizer_config.json"),
        ": tokenizer: cannot be used: TypeError: ",
    ),
    "none": (lambda folder: (folder / "tokenizer.json").unlink(), ": tokenizer: cannot be used: "),
}


def damaged(whole: Path, folder: Path, damage: Damage) -> Path:
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    damage(folder)
    return folder


def test_a_whole_folder(whole: Path) -> None:
    model = lazyllm_ext.load_model(whole, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert len(lazyllm_ext.load_tokenizer(whole)) == 83


def test_tied_weights_are_no_missing_ones(tmp_path: Path) -> None:
    helpers.tiny_qwen2().save_pretrained(tmp_path)
    lazyllm_ext.load_model(tmp_path)


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_wrong_with_a_model_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    damage, said = DAMAGED[name]
    folder = damaged(whole, tmp_path, damage)
    with pytest.raises(ValueError) as refused:
        lazyllm_ext.load_model(folder)
    assert str(refused.value).startswith(str(folder))
    assert said in str(refused.value)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_wrong_with_a_tokenizer_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    damage, said = TOKENIZERS[name]
    folder = damaged(whole, tmp_path, damage)
    with pytest.raises(ValueError) as refused:
        lazyllm_ext.load_tokenizer(folder)
    assert str(refused.value).startswith(str(folder))
    assert said in str(refused.value)


def test_a_tokenizer_with_code_of_its_own_asks_nobody(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("somebody was asked"))
    own = {"AutoTokenizer": ["code.Own", None]}
    folder = damaged(whole, tmp_path, field("auto_map", own, "tokenizer_config.json"))
    field("tokenizer_class", "Own", "tokenizer_config.json")(folder)
    (folder / "code.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(ValueError) as refused:
        lazyllm_ext.load_tokenizer(folder)
    assert "got code of its own, which is not run" in str(refused.value)
