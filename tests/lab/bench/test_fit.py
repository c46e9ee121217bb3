"""The fit and the exponents on times that are known."""

from __future__ import annotations

from typing import Any

import pytest

from lazyllm_ext.lab.bench.fit import exponent, fit_time, growth
from lazyllm_ext.lab.bench.parts import PARTS

LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768]


def test_a_quadratic_is_found():
    fit = fit_time(LENGTHS, [0.05 + 2e-3 * n + 3e-8 * n * n for n in LENGTHS])
    assert fit is not None
    assert fit.constant == pytest.approx(0.05)
    assert fit.linear == pytest.approx(2e-3)
    assert fit.quadratic == pytest.approx(3e-8)
    assert fit.worst < 1e-9


def test_all_lengths_weigh_the_same():
    noise = [1.05, 0.96, 1.03, 0.95, 1.04, 0.97, 1.02]
    times = [(2e-3 * n + 3e-8 * n * n) * factor for n, factor in zip(LENGTHS, noise, strict=True)]
    fit = fit_time(LENGTHS, times)
    assert fit is not None
    assert fit.worst < 0.08
    assert fit.linear == pytest.approx(2e-3, rel=0.1)


def test_three_lengths_fit_anything():
    assert fit_time(LENGTHS[:3], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponent(power: float):
    assert exponent(LENGTHS, [7.0 * n**power for n in LENGTHS]) == pytest.approx(power)


def test_exponent_of_the_long_prompts():
    """A constant cost that counts at 512 tokens only does not make 32k look sub-linear."""
    assert exponent(LENGTHS, [0.5 + 1e-3 * n for n in LENGTHS]) == pytest.approx(1, abs=0.06)


def test_no_exponent():
    assert exponent([512], [1.0]) is None
    assert exponent([512, 1024], [0.0, 0.0]) is None


def test_growth():
    def row(n: int) -> dict[str, Any]:
        parts = dict.fromkeys(PARTS, 0.0)
        parts.update(projections_mlp=1e-3 * n, attention=1e-7 * n * n, rest=1e-4 * n)
        operations = {
            "projections": 4 * n, "mlp": 8 * n, "attention": n * n, "lm_head": 0
        }  # fmt: skip
        return {
            "ttft_s": {"median": sum(parts.values())},
            "parts_s": parts,
            "operations": operations,
        }

    found = growth(LENGTHS, [row(n) for n in LENGTHS])
    assert found["fit"]["quadratic"] == pytest.approx(1e-7)
    assert found["quadratic_share"] == pytest.approx(found["attention_share"])
    assert found["linear_gflop_per_s"] == pytest.approx(12 / 1e-3 * 1e-9)
    assert found["attention_gflop_per_s"] == pytest.approx(1e7 * 1e-9)
    exponents = found["exponents"]
    assert exponents["attention"] == pytest.approx(2)
    assert exponents["projections_mlp"] == pytest.approx(1)
    assert exponents["rest"] == pytest.approx(1)
    assert exponents["scoring"] is None
    assert 1 < exponents["operations"] <= 2


def test_growth_without_a_profile():
    found = growth([512, 1024], [{"ttft_s": {"median": 1.0}}, {"ttft_s": {"median": 2.0}}])
    assert found["fit"] is None
    assert found["exponents"] == {"ttft": pytest.approx(1)}
