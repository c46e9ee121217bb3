"""Every supported type: its export answers what `apply` answers, or is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import boundary_layers, random_ids
from hf.every_model import HERE, REFUSED_HERE, tiny_of

from lazyllm_ext import LazyDecoder, export

from .conftest import answers

_PAGE = Path(__file__).parents[2] / "docs" / "export.md"
EXPORTED = set(
    re.findall(r"`(\w+)`", re.findall(r"Types that export: ([^.]*)", _PAGE.read_text())[0])
)
TURNS = [random_ids(21, seed=1), random_ids(5, seed=2)]


def test_every_type_that_exports_is_here() -> None:
    assert sorted(EXPORTED - {*HERE, *REFUSED_HERE}) == []


@pytest.mark.parametrize("kind", [kind for kind in HERE if kind in EXPORTED])
def test_answers_what_apply_answers(kind: str, tmp_path: Path) -> None:
    model = tiny_of(kind, eos_token_id=None)
    schedule: Any = {
        "boundaries": [{"layer": boundary_layers(model)[0], "keep": 0.4}],
        "window": 2,
        "pool": 3,
        "max_revive": 1,  # fewer than wait
    }
    expected, revived = answers(model, schedule, TURNS, 5)
    export.torchscript(model, schedule, tmp_path / "model.pt")
    exported = export.load(tmp_path / "model.pt")
    assert [list(exported.generate(turn, 5)) for turn in TURNS] == expected
    assert exported.program.revived() == revived
    first, second = exported.program.computed_per_stage()
    assert second[0] < first[0]


@pytest.mark.parametrize("kind", [kind for kind in HERE if kind not in EXPORTED])
def test_refused_by_name(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^export: (mlp|norm): expected "):
        LazyDecoder.from_model(tiny_of(kind), "dense", export=True)
