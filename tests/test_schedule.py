"""Schedules: what is read, what is refused and in which words, and where boundaries fall."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyllm_ext.schedule import (
    Boundary,
    PruningSchedule,
    ResolvedSchedule,
    shipped_schedules,
)

FULL_30 = [True] * 30
GEMMA_18 = [layer % 6 == 5 for layer in range(18)]  # full attention in layers 5, 11 and 17


def one(**fields):
    """A schedule with one boundary in layer 3, and the given fields."""
    return {"boundaries": [{"layer": 3, "keep": 0.5}], **fields}


def many(*boundaries):
    return {"boundaries": list(boundaries)}


# Reading and writing


def test_omitted_fields_are_the_papers():
    schedule = PruningSchedule.from_dict(one())
    assert schedule == PruningSchedule(boundaries=(Boundary(layer=3, keep=0.5),))
    assert schedule.resolve(FULL_30) == ResolvedSchedule(
        layers=(3,), keeps=(0.5,), budgets=(-1,), heads=((),), window=1, pool=1, protect_first=0,
        over_heads="mean", accumulate=False, max_revive=-1, min_tokens=0,
    )  # fmt: skip


def test_every_field_arrives():
    text = """{
        "name": "mine",
        "boundaries": [{"depth": 0.5, "keep": 1}, {"layer": 20, "tokens": 64, "heads": [5, 2]}],
        "window": 32, "pool": 7, "protect_first": 4, "over_heads": "max", "accumulate": true,
        "max_revive": 0, "min_tokens": 512}"""
    assert PruningSchedule.from_json(text).resolve(FULL_30) == ResolvedSchedule(
        layers=(15, 20), keeps=(1.0, 1.0), budgets=(-1, 64), heads=((), (2, 5)), window=32, pool=7,
        protect_first=4, over_heads="max", accumulate=True, max_revive=0, min_tokens=512,
    )  # fmt: skip


def test_percentile_is_stored_as_keep():
    # Figure 4a of the paper: 30 % of what is left, three times.
    schedule = PruningSchedule.from_dict(
        many(*({"depth": depth, "percentile": 30} for depth in (0.3, 0.6, 0.9)))
    )
    assert [boundary.keep for boundary in schedule.boundaries] == [0.7, 0.49, 0.343]
    assert schedule.boundaries == PruningSchedule.load("paper").boundaries
    assert "percentile" not in schedule.to_json()


def test_percentile_goes_on_from_keep():
    schedule = PruningSchedule.from_dict(
        many(
            {"layer": 1, "keep": 0.4}, {"layer": 2, "percentile": 75}, {"layer": 3, "percentile": 0}
        )
    )
    assert [boundary.keep for boundary in schedule.boundaries] == [0.4, 0.1, 0.1]


def test_load_takes_whatever_names_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    schedule = PruningSchedule.from_dict(one(window=8))
    file = tmp_path / "mine.json"
    file.write_text(schedule.to_json(), encoding="utf-8")
    for source in (schedule, schedule.to_dict(), file, str(file), schedule.to_json()):
        assert PruningSchedule.load(source) == schedule
    monkeypatch.chdir(tmp_path)
    assert PruningSchedule.load("mine.json") == schedule


def test_shipped_name_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "fast").write_text(json.dumps(one()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert PruningSchedule.load("fast").name == "fast"
    assert PruningSchedule.load("./fast").name is None


numbers = st.integers(0, 10_000)


@st.composite
def schedules(draw: st.DrawFn) -> PruningSchedule:
    layers = sorted(draw(st.sets(st.integers(0, 200), max_size=5)))
    keeps = sorted(
        draw(
            st.lists(st.floats(0, 1, exclude_min=True), min_size=len(layers), max_size=len(layers))
        ),
        reverse=True,
    )
    budget = draw(st.integers(1, 10_000))
    budgets = draw(st.lists(st.booleans(), min_size=len(layers), max_size=len(layers)))
    return PruningSchedule(
        boundaries=tuple(
            Boundary(
                layer=layer,
                **({"tokens": budget} if by_budget else {"keep": keep}),
                heads=draw(st.none() | st.sets(numbers, min_size=1).map(tuple)),
            )
            for layer, keep, by_budget in zip(layers, keeps, budgets, strict=True)
        ),
        window=draw(st.integers(1, 100)),
        pool=draw(st.integers(0, 20)) * 2 + 1,
        protect_first=draw(numbers),
        over_heads=draw(st.sampled_from(["mean", "max"])),
        accumulate=draw(st.booleans()),
        max_revive=draw(st.none() | numbers),
        min_tokens=draw(numbers),
        name=draw(st.none() | st.text()),
    )


@given(schedules(), st.dictionaries(st.text(min_size=1), schedules(), max_size=2))
def test_json_gives_back_an_equal_schedule(schedule: PruningSchedule, models):
    whole = PruningSchedule.from_dict({**schedule.to_dict(), "models": {
        key: entry.to_dict() for key, entry in models.items()
    }})  # fmt: skip
    assert PruningSchedule.from_json(whole.to_json()) == whole
    assert whole.models == models
    assert hash(whole) == hash(schedule)


def test_schedules_do_not_change():
    with pytest.raises(FrozenInstanceError):
        PruningSchedule().window = 3


# What is refused

BAD = {
    "not JSON": ("{boundaries}", "expected JSON, got other text"),
    "no object": ("[1, 2]", "expected a JSON object, got [1, 2]"),
    "a field twice": (
        '{"boundaries": [{"layer": 3, "layer": 4, "keep": 0.5}]}',
        "expected each field once, got 'layer' twice",
    ),
    "unknown field": (one(windows=3), "min_tokens, models, got 'windows'"),
    "unknown boundary field": (
        many({"layer": 3, "keep": 0.5, "ratio": 1}),
        "expected only the fields layer, depth, keep, percentile, tokens, heads, got 'ratio'",
    ),
    "boundaries no list": ({"boundaries": {"layer": 3}}, "boundaries: expected a list"),
    "boundary no object": (many(3), "boundaries[0]: expected an object, got 3"),
    "no place": (
        many({"keep": 0.5}),
        "boundaries[0]: expected exactly one of layer, depth, got none of them",
    ),
    "two places": (
        many({"layer": 3, "depth": 0.5, "keep": 0.5}),
        "expected exactly one of layer, depth, got layer and depth",
    ),
    "no amount": (
        many({"layer": 3}),
        "expected exactly one of keep, percentile, tokens, got none of them",
    ),
    "both spellings": (
        many({"layer": 3, "keep": 0.5, "percentile": 50}),
        "expected exactly one of keep, percentile, tokens, got keep and percentile",
    ),
    "keep and tokens": (
        many({"layer": 3, "keep": 0.5, "tokens": 50}),
        "expected exactly one of keep, percentile, tokens, got keep and tokens",
    ),
    "layer a float": (many({"layer": 3.0, "keep": 0.5}), "layer: expected a layer number, got 3.0"),
    "layer negative": (many({"layer": -1, "keep": 0.5}), "layer number, at least 0, got -1"),
    "depth above 1": (
        many({"depth": 1.1, "keep": 0.5}),
        "depth: expected a number between 0 and 1, got 1.1",
    ),
    "depth NaN": (
        '{"boundaries": [{"depth": NaN, "keep": 0.5}]}',
        "depth: expected a number between 0 and 1, got nan",
    ),
    "keep 0": (
        many({"layer": 3, "keep": 0}),
        "boundaries[0]: keep: expected a number above 0 and at most 1, got 0",
    ),
    "keep negative": (many({"layer": 3, "keep": -0.1}), "above 0 and at most 1, got -0.1"),
    "keep above 1": (many({"layer": 3, "keep": 1.01}), "above 0 and at most 1, got 1.01"),
    "keep NaN": ('{"boundaries": [{"layer": 3, "keep": NaN}]}', "at most 1, got nan"),
    "keep infinite": ('{"boundaries": [{"layer": 3, "keep": Infinity}]}', "at most 1, got inf"),
    "keep a string": (many({"layer": 3, "keep": "0.5"}), "at most 1, got '0.5'"),
    "keep true": (many({"layer": 3, "keep": True}), "at most 1, got True"),
    "keep beyond every float": (many({"layer": 3, "keep": 10**400}), "at most 1, got 1000"),
    "keep growing": (
        many({"layer": 3, "keep": 0.5}, {"layer": 4, "keep": 0.6}),
        "expected keep never to grow from one boundary to the next, got 0.6 after 0.5",
    ),
    "tokens growing": (
        many({"layer": 3, "tokens": 5}, {"layer": 4, "tokens": 6}),
        "expected tokens never to grow from one boundary to the next, got 6 after 5",
    ),
    "tokens 0": (many({"layer": 3, "tokens": 0}), "a number of tokens, at least 1, got 0"),
    "tokens too many": (many({"layer": 3, "tokens": 2**31}), "at most 2147483647, got 2147483648"),
    "percentile 100": (
        many({"layer": 3, "percentile": 100}),
        "percentile: expected a number of at least 0 and below 100, got 100",
    ),
    "percentile negative": (many({"layer": 3, "percentile": -1}), "below 100, got -1"),
    "percentile after tokens": (
        many({"layer": 3, "tokens": 5}, {"layer": 4, "percentile": 10}),
        "boundaries[1]: percentile: expected a boundary with keep before it, got one with tokens",
    ),
    "layers out of order": (
        many({"layer": 4, "keep": 0.5}, {"layer": 3, "keep": 0.5}),
        "expected each layer above the one before it, got 3 after 4",
    ),
    "a layer twice": (
        many({"layer": 4, "keep": 0.5}, {"layer": 4, "keep": 0.4}),
        "expected each layer above the one before it, got 4 after 4",
    ),
    "depths out of order": (
        many({"depth": 0.4, "keep": 0.5}, {"depth": 0.3, "keep": 0.5}),
        "expected each depth above the one before it, got 0.3 after 0.4",
    ),
    "even pool": (one(pool=4), "pool: expected an odd number, got 4"),
    "pool 0": (one(pool=0), "pool: expected an odd number, at least 1, got 0"),
    "window 0": (one(window=0), "window: expected a number of queries, at least 1, got 0"),
    "window null": (one(window=None), "window: expected a number of queries, got None"),
    "window a float": (one(window=2.5), "window: expected a number of queries, got 2.5"),
    "protect_first negative": (one(protect_first=-1), "protect_first: expected a number of tokens"),
    "over_heads": (one(over_heads="sum"), 'over_heads: expected "mean" or "max", got \'sum\''),
    "accumulate": (one(accumulate=1), "accumulate: expected true or false, got 1"),
    "heads no list": (
        many({"layer": 3, "keep": 0.5, "heads": 2}),
        "boundaries[0]: heads: expected a list of head numbers, got 2",
    ),
    "no heads": (
        many({"layer": 3, "keep": 0.5, "heads": []}),
        "boundaries[0]: heads: expected a list of head numbers, got []",
    ),
    "a head twice": (
        many({"layer": 3, "keep": 0.5, "heads": [2, 2]}),
        "boundaries[0]: heads: expected each number once, got [2, 2]",
    ),
    "no head number": (
        many({"layer": 3, "keep": 0.5, "heads": [-1]}),
        "boundaries[0]: heads: expected head numbers",
    ),
    "max_revive negative": (one(max_revive=-1), "max_revive: expected null or a number of tokens"),
    "min_tokens a bool": (
        one(min_tokens=True),
        'min_tokens: expected a number of tokens or "auto", got True',
    ),
    "name a number": (one(name=3), "name: expected a string, got 3"),
    "models no object": (one(models=[1]), "models: expected an object of schedules, got [1]"),
    "a bad entry": (one(models={"a": {"pool": 2}}), "models['a']: pool: expected an odd number"),
    "an entry with entries": (
        one(models={"a": one(models={"b": one()})}),
        "models['a']: expected a schedule without models, got one with them",
    ),
}


@pytest.mark.parametrize("source, message", BAD.values(), ids=BAD.keys())
def test_bad_schedule_gets_one_sentence(source, message: str):
    with pytest.raises(ValueError) as raised:
        PruningSchedule.load(source)
    said = str(raised.value)
    assert message in said
    assert said.startswith("schedule")
    assert "\n" not in said


def test_message_names_the_file(tmp_path: Path):
    file = tmp_path / "mine.json"
    file.write_text('{"name": "x", "pool": 2}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"^schedule '.*mine.json': pool: expected an odd"):
        PruningSchedule.load(file)


def test_sources_that_are_no_schedule(tmp_path: Path):
    names = "balanced, dense, fast, paper"
    for missing in ("quick", tmp_path / "quick.json"):
        with pytest.raises(ValueError, match=rf"quick.*expected one of {names}, or the path of a"):
            PruningSchedule.load(missing)
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        PruningSchedule.load(tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"cannot read .*: it is not UTF-8 text"):
        PruningSchedule.load(binary)
    with pytest.raises(ValueError, match="expected a PruningSchedule, a dict, a shipped name"):
        PruningSchedule.load(7)


def test_objects_are_checked_like_json():
    with pytest.raises(ValueError, match="expected exactly one of layer, depth, got none of them"):
        Boundary(keep=0.5)
    with pytest.raises(ValueError, match="expected Boundary, got "):
        PruningSchedule(boundaries=[{"layer": 3, "keep": 0.5}])
    with pytest.raises(ValueError, match="expected keep never to grow"):
        PruningSchedule(boundaries=[Boundary(layer=1, keep=0.1), Boundary(layer=2, keep=0.2)])


# Where boundaries fall


@pytest.mark.parametrize(
    "name, layers",
    [("dense", ()), ("paper", (9, 18, 27)), ("balanced", (9, 11, 14, 19)), ("fast", (9, 14, 19))],
)
def test_shipped_on_30_layers(name: str, layers: tuple[int, ...]):
    assert PruningSchedule.load(name).resolve(FULL_30).layers == layers


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_shipped_for_a_measured_model(name: str):
    schedule = PruningSchedule.load(name)
    mine = schedule.for_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert mine.name == f"{name} for SmolLM2-135M"
    assert mine.resolve(FULL_30).layers == (8, 15, 18)
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
    # Layers 5, 7, 8 and 11 are asked; 5 and 11 are both three from 8, the later one wins the tie.
    resolved = PruningSchedule.load("balanced").resolve(GEMMA_18)
    assert (resolved.layers, resolved.keeps) == ((5, 11), (0.5, 0.25))


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
