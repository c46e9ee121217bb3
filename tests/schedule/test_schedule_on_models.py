"""Schedules on models: where boundaries fall, and which entry a model takes."""

import pytest
import torch
from helpers import random_ids, tiny_llama
from hypothesis import given
from hypothesis import strategies as st

import lazyllm_ext
from lazyllm_ext.schedule import Boundary, PruningSchedule, shipped_schedules

from .written import FULL_30, GEMMA_18, many, one


@pytest.mark.parametrize(
    "name, layers",
    [("dense", ()), ("paper", (9, 18, 27)), ("balanced", (11, 14)), ("fast", (9, 11, 14))],
)
def test_shipped_on_30_layers(name: str, layers: tuple[int, ...]):
    assert PruningSchedule.load(name).resolve(FULL_30).layers == layers


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_shipped_for_a_measured_model(name: str):
    schedule = PruningSchedule.load(name)
    mine = schedule.for_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert mine.name == f"{name} for SmolLM2-135M"
    assert mine.resolve(FULL_30).layers == (7, 14)
    assert schedule.for_model("HuggingFaceTB/SmolLM2-360M-Instruct") is schedule


def test_every_shipped_schedule_fits_every_depth():
    assert shipped_schedules() == ("balanced", "dense", "fast", "paper")
    for name in shipped_schedules():
        schedule = PruningSchedule.load(name)
        assert schedule.name == name
        for layers in range(2, 130):
            resolved = schedule.resolve([True] * layers)
            assert len(resolved.layers) == len(resolved.keeps) <= len(schedule.boundaries)


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.floats(0, 1))
def test_depth_is_the_nearest_full_attention_layer(full: list[bool], depth: float):
    schedule = PruningSchedule(boundaries=(Boundary(depth=depth, keep=0.5),))
    allowed = [layer for layer in range(len(full) - 1) if full[layer]]
    if not allowed:
        with pytest.raises(ValueError, match="a full-attention layer before the last layer"):
            schedule.resolve(full)
        return
    (layer,) = schedule.resolve(full).layers
    asked = round(depth * len(full))
    assert layer in allowed
    for other in allowed:
        assert abs(layer - asked) <= abs(other - asked)
        if abs(layer - asked) == abs(other - asked):
            assert layer >= other


def test_depths_that_meet_are_the_later_boundary():
    # Layers 5, 7 and 8 are asked; 5 and 11 are both three from 8, the later one wins the tie.
    resolved = PruningSchedule.load("fast").resolve(GEMMA_18)
    assert (resolved.layers, resolved.keeps) == ((5, 11), (0.4, 0.25))


@pytest.mark.parametrize(
    "layer, message",
    [
        (30, "got layer 30, which is past the end of a model of 30 layers (0 to 29)"),
        (29, "got layer 29, which is the last of 30 layers, with nothing after it to save"),
        (7, "got layer 7, which attends within a sliding window (full-attention layers: 0, 1, "),
    ],
)
def test_layer_that_can_be_no_boundary(layer: int, message: str):
    full = [layer != 7 for layer in range(30)]
    schedule = PruningSchedule(boundaries=(Boundary(layer=layer, keep=0.5),))
    with pytest.raises(ValueError) as raised:
        schedule.resolve(full)
    assert message in str(raised.value)


@pytest.mark.parametrize("second", [{"layer": 15}, {"layer": 10}])
def test_layer_and_depth_out_of_order(second: dict[str, int]):
    schedule = PruningSchedule.from_dict(many({"depth": 0.5, "keep": 0.5}, {**second, "keep": 0.5}))
    with pytest.raises(
        ValueError, match=r"got layer 1\d \(layer 1\d\) after depth 0.5 \(layer 15\)"
    ):
        schedule.resolve(FULL_30)


def test_the_longest_key_that_fits_a_model_wins():
    entries = {"Qwen2.5-Coder": one(pool=3), "Qwen2.5-Coder-0.5B": one(pool=5), "Qwen2.5": one()}
    schedule = PruningSchedule.from_dict(one(models=entries))
    assert schedule.for_model("Qwen/Qwen2.5-Coder-0.5B-Instruct").pool == 5
    assert schedule.for_model("Qwen/Qwen2.5-Coder-7B").pool == 3
    whole = PruningSchedule.from_dict(one(models={"Qwen/Qwen2": one(pool=5), "Llama-3": one()}))
    for other in (
        "Qwen/Qwen2.5-0.5B",
        "meta/Llama-3.2-1B",
        "Llama-3-runs/mistral",
        "llama-3.bak/x",
    ):
        assert whole.for_model(other) is whole


def test_entry_for_a_known_model_replaces_the_general_schedule():
    entry = many({"layer": 5, "keep": 0.1})
    schedule = PruningSchedule.from_dict(one(window=8, models={"SmolLM2-135M": entry}))
    for known in ("smollm2-135m", "/models/SmolLM2-135M/", "hub/SmolLM2-135M", "C:\\SmolLM2-135M"):
        assert schedule.for_model(known) == PruningSchedule.from_dict(entry)
        assert schedule.resolve(FULL_30, known).layers == (5,)
    for variant in ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m_mine", "smollm2-135m.v2"):
        assert schedule.for_model(variant) == PruningSchedule.from_dict(entry)
    for unknown in (None, "", "smollm2-360m", "smollm2-135m/other", "smollm2-135mini"):
        assert schedule.for_model(unknown) is schedule
        assert schedule.resolve(FULL_30, unknown).layers == (3,)


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_shipped_leave_short_prompts_whole(name: str):
    """As measured: docs/schedules.md."""
    schedule = PruningSchedule.load(name)
    assert {entry.min_tokens for entry in (schedule, *schedule.models.values())} == {512}
    model = tiny_llama()
    ids = torch.tensor([random_ids(512, seed=4)])
    with lazyllm_ext.apply(model, name) as lazy:
        for tokens, pruned in ((71, False), (511, False), (512, True)):
            model.generate(ids[:, :tokens], max_new_tokens=1, do_sample=False)
            report = lazy.report()
            assert (report.tokens_per_stage[-1] < tokens) == pruned
