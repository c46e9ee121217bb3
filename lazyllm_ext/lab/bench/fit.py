"""How a time grows with the prompt, and whether its operations explain it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression
from typing import Any

import torch

from .parts import PARTS

_LAST = 3  # lengths that an exponent is taken from: constant costs bend it at short prompts


@dataclass(frozen=True)
class Fit:
    """Seconds = constant + linear · n + quadratic · n², for n tokens."""

    constant: float
    linear: float
    quadratic: float
    worst: float  # the largest |fit / measured - 1|


def fit_time(lengths: Sequence[int], seconds: Sequence[float]) -> Fit | None:
    """The least squares of the relative errors; None for fewer than 4 lengths, which fit anything.

    Relative, because the longest prompt takes a thousand times as long as the shortest and both
    are measured to the same few percent.
    """
    if len(lengths) < 4:
        return None
    n = torch.tensor(lengths, dtype=torch.float64) / max(lengths)
    measured = torch.tensor(seconds, dtype=torch.float64)
    columns = torch.stack([torch.ones_like(n), n, n * n], 1)
    ones = torch.ones_like(measured)
    solution = torch.linalg.lstsq(columns / measured[:, None], ones[:, None]).solution[:, 0]
    worst = float((columns @ solution / measured - 1).abs().max())
    constant, linear, quadratic = solution.tolist()
    return Fit(constant, linear / max(lengths), quadratic / max(lengths) ** 2, worst)


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float | None:
    """p of seconds ~ n^p over the last lengths; None where nothing can be said.

    1 is linear, 2 is quadratic.
    """
    pairs = list(zip(lengths, seconds, strict=True))[-_LAST:]
    if len(pairs) < 2 or min(took for _, took in pairs) <= 0:
        return None
    x, y = zip(*((math.log(n), math.log(took)) for n, took in pairs), strict=True)
    return linear_regression(x, y).slope


def growth(lengths: Sequence[int], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rows of one contender say together; a row for every length.

    Returns:
        `fit`: of TTFT; `quadratic_share`: of TTFT at the longest prompt, by the fit, beside
        `attention_share`, what the profiler saw there; `linear_gflop_per_s` and
        `attention_gflop_per_s`: operations over the profiler's time at the longest prompt;
        `exponents`: of TTFT, of each part and of the operations.
    """
    ttft = [row["ttft_s"]["median"] for row in rows]
    fitted, last = fit_time(lengths, ttft), rows[-1]
    result: dict[str, Any] = {
        "fit": asdict(fitted) if fitted else None,
        "quadratic_share": fitted.quadratic * lengths[-1] ** 2 / ttft[-1] if fitted else None,
        "attention_share": None,
        "exponents": {"ttft": exponent(lengths, ttft)},
    }
    if "parts_s" in last:
        parts, operations = last["parts_s"], last["operations"]
        linear = operations["projections"] + operations["mlp"] + operations["lm_head"]
        result["attention_share"] = parts["attention"] / sum(parts.values())
        result["linear_gflop_per_s"] = linear / parts["projections_mlp"] * 1e-9
        result["attention_gflop_per_s"] = operations["attention"] / parts["attention"] * 1e-9
        for part in PARTS:
            result["exponents"][part] = exponent(lengths, [row["parts_s"][part] for row in rows])
        totals = [float(sum(row["operations"].values())) for row in rows]
        result["exponents"]["operations"] = exponent(lengths, totals)
    return result
