"""Tensor parallelism of transformers: two processes give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from transformers import AutoModelForCausalLM

import lazyllm_ext

from . import in_parallel
from .every_model import HERE, OLD, tiny_of
from .tiny import left_padded

MODELS = {
    "llama": helpers.tiny_llama,
    "qwen2": lambda: helpers.tiny_qwen2(use_sliding_window=False),
    "mistral": helpers.tiny_mistral,  # refused: no layer for a boundary, so only dense runs
    "qwen3": helpers.tiny_qwen3,  # head norms
    # Refused ones.
    "one key head": lambda: helpers.tiny_llama(num_key_value_heads=1),
    "fused": lambda: tiny_of("phi3"),
    "norm over heads": lambda: tiny_of("olmo2"),
}
SCHEDULES: dict[str, Any] = {
    "dense": "dense",
    "balanced": helpers.at_any_length("balanced").to_dict(),
    # Unbounded revival, the heads' mean.
    "revives": {
        "boundaries": [{"layer": 1, "keep": 0.5}, {"layer": 3, "keep": 0.3}],
        "window": 1,
        "pool": 3,
        "protect_first": 1,
    },
    # Decoding in fixed shapes, scores added up.
    "bounded": {
        "boundaries": [{"layer": 1, "keep": 0.5}, {"layer": 3, "keep": 0.3}],
        "window": 4,
        "max_revive": 2,
        "accumulate": True,
    },
    "heads": {"boundaries": [{"layer": 1, "keep": 0.5, "heads": [0, 3]}]},
}
RUNS = [
    (name, schedule, batch)
    for name in ("llama", "qwen2", "qwen3")
    for schedule in ("dense", "balanced", "revives", "bounded")
    for batch in ("one", "padded")
] + [("mistral", "dense", "one"), ("mistral", "dense", "padded")]
REFUSED = {
    ("one key head", "dense"): "config.num_key_value_heads: expected a multiple of 2, got 1",
    ("fused", "dense"): "divided by heads (colwise, colwise, colwise, rowwise), got qkv_proj ",
    ("norm over heads", "dense"): "k_norm: a norm over several heads is not supported",
    ("llama", "heads"): "schedule: heads: expected a model in one process, got one over 2",
}
NEW_TOKENS = 8

# Types without a plan of transformers', with fused projections, or with a norm over all heads.
NOT_DIVIDED = {
    *("bitnet", "falcon", "gpt-sw3", "gpt2", "gpt_bigcode", "persimmon", "stablelm"),
    *("gpt_neox", "granitemoe", "hunyuan_v1_dense", "hunyuan_v1_moe", "phi3", "phimoe"),
    *("cohere", "flex_olmo", "minimax_m2", "olmo2", "olmo3", "olmoe"),
}


def _schedule(model: Any) -> dict[str, Any]:
    """A boundary in the first layer that sees everything."""
    decoder: Any = lazyllm_ext.LazyDecoder.from_model(model, "dense")
    first = next(number for number, layer in enumerate(decoder.layers) if layer.window == 0)
    return {"boundaries": [{"layer": first, "keep": 0.4}], "window": 2, "pool": 3}


def _inputs() -> dict[str, dict[str, torch.Tensor]]:
    ids = torch.randint(3, 83, (3, 90), generator=torch.Generator().manual_seed(5))
    prompts = [ids[0], ids[1, :41], ids[2, :66]]
    return {"one": {"input_ids": ids[:1]}, "padded": left_padded(prompts)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes left their results."""
    folder = tmp_path_factory.mktemp("parallel")
    for name, make in MODELS.items():
        make().save_pretrained(folder / name)
    torch.save(_inputs(), folder / "inputs.pt")
    every = {kind: tiny_of(kind) for kind in HERE}
    for kind, model in every.items():
        model.save_pretrained(folder / "every" / kind)
    cases = {
        "every": {kind: _schedule(model) for kind, model in every.items()},
        "models": [*MODELS],
        "schedules": SCHEDULES,
        "runs": RUNS,
        "refused": [*REFUSED],
        "new_tokens": NEW_TOKENS,
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ran = subprocess.run(
        [*command, in_parallel.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """The models in one process."""
    return {name: AutoModelForCausalLM.from_pretrained(folder / name) for name in MODELS}


@pytest.mark.parametrize(("name", "schedule", "batch"), RUNS)
def test_two_processes_give_what_one_gives(
    ranks: list[dict[str, Any]], whole: dict[str, Any], name: str, schedule: str, batch: str
) -> None:
    expected = in_parallel.measure(whole[name], SCHEDULES[schedule], _inputs()[batch], NEW_TOKENS)
    first, second = (rank[f"{name} {schedule} {batch}"] for rank in ranks)
    for got in (first, second):
        assert torch.equal(got["sequences"], expected["sequences"])
        torch.testing.assert_close(got["logits"], expected["logits"], atol=1e-3, rtol=0)
        assert got["tokens_per_stage"] == expected["tokens_per_stage"]
        assert got["revived"] == expected["revived"]
        for ours, theirs in zip(got["kept"], expected["kept"], strict=True):
            assert torch.equal(ours, theirs)
        assert got["kv_bytes"] == expected["kv_bytes"] / 2  # each has half of the heads
    # Not to rounding: what the two select depends on it.
    assert torch.equal(first["logits"], second["logits"])
    if schedule != "dense":
        assert expected["tokens_per_stage"][-1] < expected["tokens_per_stage"][0]
    if schedule == "revives":
        assert min(expected["revived"]) > 0


def test_ways_to_generate(ranks: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    ids = _inputs()["one"]["input_ids"]
    expected = in_parallel.ways(whole["llama"], SCHEDULES["revives"], ids)
    for rank in ranks:
        for way, tokens in expected.items():
            assert torch.equal(rank["ways"][way], tokens), way


@pytest.mark.parametrize("kind", HERE)
def test_every_type(ranks: list[dict[str, Any]], kind: str) -> None:
    """What one process gives, or refused by name."""
    if isinstance(ranks[0][kind], str):
        assert OLD or kind in NOT_DIVIDED
        assert "tp_plan" in ranks[0][kind] or ranks[0][kind].startswith("model: tensor parallelism")
        assert ranks[1][kind] == ranks[0][kind]
        return
    assert OLD or kind not in NOT_DIVIDED
    model = tiny_of(kind)
    expected = in_parallel.measure(model, _schedule(model), _inputs()["padded"], 3)
    for rank in ranks:
        got = rank[kind]
        assert torch.equal(got["sequences"], expected["sequences"])
        torch.testing.assert_close(got["logits"], expected["logits"], atol=1e-3, rtol=0)
        assert torch.equal(got["kept"][0], expected["kept"][0])


def test_each_process_its_own_prompts(ranks: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    expected = in_parallel.measure(
        whole["llama"], SCHEDULES["revives"], _inputs()["padded"], NEW_TOKENS
    )
    for rank, got in enumerate(ranks):
        own = got["own prompts"]
        assert torch.equal(own["sequences"], expected["sequences"][rank::2])
        torch.testing.assert_close(own["logits"], expected["logits"][:, rank::2], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "schedule"), REFUSED)
def test_refused(ranks: list[dict[str, Any]], name: str, schedule: str) -> None:
    for rank in ranks:
        assert REFUSED[name, schedule] in rank[f"{name} {schedule}"]


@pytest.mark.parametrize("use", ["save", "load", "export"])
def test_what_needs_the_whole_model(ranks: list[dict[str, Any]], use: str) -> None:
    for rank in ranks:
        assert rank[use] == (
            f"{use}: expected a model in one process, got one over 2 tensor-parallel ones"
        )


def test_another_sharding(whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several kinds of parallelism at once, or one of whose plan nothing is known."""

    class Mesh:
        def size(self) -> int:
            return 4

    message = "or the tensor parallelism of transformers' tp_plan alone, got"
    monkeypatch.setattr(whole["llama"], "_tp_size", 2)
    with pytest.raises(ValueError, match=f"{message} another sharding"):
        lazyllm_ext.apply(whole["llama"], "dense")
    monkeypatch.setattr(whole["llama"], "_device_mesh", Mesh(), raising=False)
    with pytest.raises(ValueError, match=f"{message} 4 processes for 2"):
        lazyllm_ext.apply(whole["llama"], "dense")
