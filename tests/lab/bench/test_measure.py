"""What a measurement holds: nothing here says how long anything takes."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import torch

from lazyllm_ext import LazyDecoder
from lazyllm_ext.lab.bench import BenchError, BenchRequest, measure
from lazyllm_ext.lab.bench.memory import peak_bytes
from lazyllm_ext.lab.bench.model import Model
from lazyllm_ext.lab.bench.parts import PARTS, _projections, shares
from lazyllm_ext.lab.bench.verify import verify_dense
from lazyllm_ext.lab.tools.cost import prefill_operations


def test_every_contender_at_every_length(result: dict[str, Any]):
    assert [entry["tokens"] for entry in result["lengths"]] == [64, 128, 600, 640]
    for entry in result["lengths"]:
        assert list(entry["rows"]) == ["transformers", "dense", "fast"]
        for row in entry["rows"].values():
            for key in ("ttft_s", "decode_s_per_token", "generation_s"):
                assert 0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"]
            assert row["generation_s"]["min"] >= row["ttft_s"]["min"]
    assert json.loads(json.dumps(result))["lengths"] == result["lengths"]


def test_gains_are_kept_apart(result: dict[str, Any]):
    for entry in result["lengths"]:
        rows = entry["rows"]
        assert rows["transformers"]["ttft_transformers_over_this"] == 1
        assert rows["dense"]["ttft_dense_over_this"] == 1
        assert rows["dense"]["of_ideal"] == 1
        # With one round a product of ratios is exact.
        kernels, pruning = (
            rows["dense"]["ttft_transformers_over_this"],
            rows["fast"]["ttft_dense_over_this"],
        )
        assert rows["fast"]["ttft_transformers_over_this"] == pytest.approx(kernels * pruning)


def test_the_profile_leaves_the_fast_ways_open():
    model = Model("random:tiny", "float32")
    with model.under("dense") as lazy:
        assert lazy is not None
        marked = _projections(lazy.decoder)
        own = set(model.model.modules())
        assert len(marked) == 5 * len(lazy.decoder.layers) + 1
        assert not own & set(marked)  # a hook on the model's own modules would close them
    assert set(_projections(model.model)) <= own


def test_machine_and_ceilings(result: dict[str, Any]):
    assert {"cpu", "threads", "torch", "transformers", "lazyllm_ext"} <= result["machine"].keys()
    assert result["ceilings"].keys() == {
        "copy_gb_per_s", "float32_gflop_per_s", "bfloat16_gflop_per_s"
    }  # fmt: skip
    assert min(result["ceilings"].values()) > 0


def test_bytes(result: dict[str, Any]):
    for entry in result["lengths"]:
        rows = entry["rows"]
        # 6 layers, keys and values, 2 heads of 16, float32; the last new token is never computed.
        assert rows["transformers"]["kv_bytes"] == 6 * 2 * 2 * 16 * 4 * (entry["tokens"] + 2)
        assert (rows["fast"]["aux_bytes"] > 0) == (entry["tokens"] >= 512)  # min_tokens
        assert rows["dense"]["aux_bytes"] == 0
        assert rows["dense"]["held_over_needed"] >= 1


def test_parts_are_shares_of_one(result: dict[str, Any]):
    for row in result["lengths"][-1]["rows"].values():
        assert row["parts_s"].keys() == set(PARTS)
        assert sum(shares(row).values()) == pytest.approx(1)
        assert row["parts_s"]["projections_mlp"] > 0
        assert row["parts_s"]["attention"] > 0
    rows = result["lengths"][-1]["rows"]
    assert rows["transformers"]["parts_s"]["scoring"] == rows["dense"]["parts_s"]["scoring"] == 0
    assert rows["fast"]["parts_s"]["scoring"] > 0
    assert rows["fast"]["parts_s"]["selection"] > 0


def test_operations(result: dict[str, Any]):
    rows = result["lengths"][-1]["rows"]
    total = {name: sum(row["operations"].values()) for name, row in rows.items()}
    assert total["fast"] < total["dense"] < total["transformers"]
    # transformers finishes the last of 6 equal layers for all 640 tokens, `dense` for one.
    assert rows["transformers"]["operations"]["mlp"] * (5 * 640 + 1) == (
        rows["dense"]["operations"]["mlp"] * 6 * 640
    )


def test_operations_of_the_last_rows():
    decoder = LazyDecoder.from_model(Model("random:tiny", "float32").model, "dense")
    one, all_rows = prefill_operations(decoder, 40), prefill_operations(decoder, 40, (), 40)
    assert one.mlp * 6 * 40 == all_rows.mlp * (5 * 40 + 1)
    assert all_rows.attention == 6 * 4 * 64 * 40 * 41 // 2


def test_peak_memory_in_a_process_of_its_own():
    model = Model("random:tiny", "float32")
    assert peak_bytes(model, "dense", 700) > 0


def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch):
    def fail(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\n  more\nValueError: why\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(BenchError, match="peak memory of dense at 64 tokens: ValueError: why"):
        peak_bytes(Model("random:tiny", "float32"), "dense", 64)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    model = Model("random:tiny", "float32")
    ids = model.prompt(20)[None]
    monkeypatch.setattr(
        LazyDecoder, "_logits", lambda self, hidden: self.lm_head(self.norm(hidden)) + 1
    )
    with pytest.raises(BenchError, match="dense: logits differ from transformers' by"):
        verify_dense(model, ids, torch.ones_like(ids))


def test_further_checks_are_asked_for_every_schedule():
    asked = []

    def refuse(model: Model, schedule: str) -> None:
        asked.append(schedule)
        if schedule == "fast":
            raise BenchError("fast: wrong")

    request = BenchRequest("random:tiny", (64,), schedules=("balanced", "fast"))
    with pytest.raises(BenchError, match="fast: wrong"):
        measure(request, refuse)
    assert asked == ["dense", "balanced", "fast"]


def test_the_compiler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no C++ compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", broken)
    request = BenchRequest("random:tiny", (64,), 2, (1,), schedules=(), compiled=True, memory=False)
    found = measure(request)
    assert found["compile"] == {"errors": {"compiled": "RuntimeError: no C++ compiler"}}
    assert "compiled" not in found["lengths"][0]["rows"]
