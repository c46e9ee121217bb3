"""Schedules: what is read, and what is refused and in which words."""

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
)

from .written import FULL_30, many, one

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
    with pytest.raises(ValueError, match=r"^schedule .*: expected UTF-8 text, got other bytes"):
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
