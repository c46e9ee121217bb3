"""Every operator verified and timed; operator_cases.py says what and at which sizes."""

import statistics
from typing import Any

import torch
from operator_cases import Case, cases, small_cases

import lazyllm_ext  # noqa: F401 registers the operators
from lazyllm_ext.lab.bench import BenchError
from lazyllm_ext.lab.tools.timing import interleave, seconds, spread
from lazyllm_ext.progress_bar import track

_SECONDS = 3.0  # for one case, whatever the rounds: slow ones are steady after a few
_FEWEST = 3


def verify(case: Case, dtype: torch.dtype) -> None:
    """The two ways agree, or ours errs at most twice as much as PyTorch's, both against float64.

    Raises:
        BenchError: ours does not.
    """
    ours, pytorch = case.ours(), case.pytorch()
    where = f"{case.operator}, {case.name}, {str(dtype).removeprefix('torch.')}"
    if case.exact is None:
        if not torch.equal(ours, pytorch):
            raise BenchError(f"{where}: not what PyTorch gives")
        return
    exact, rows = case.exact()
    error = float((ours[rows].double() - exact).abs().max())
    allowed = 2 * float((pytorch[rows].double() - exact).abs().max())
    # The result has to be rounded once, and float32 logits of a few units before it.
    floor = float(exact.abs().max()) * torch.finfo(ours.dtype).eps * 4
    if not error <= allowed + floor:
        raise BenchError(f"{where}: errs by {error:.1e}, allowed are {allowed + floor:.1e}")


def measure(
    rounds: int, dtypes: list[str], device: str, ceilings: dict[str, float], small: bool = False
) -> list[dict[str, Any]]:
    """Verify and time every case; one row each.

    Args:
        rounds: at most so many for each case; slow ones get fewer, at least 3.
        ceilings: of this machine; what each case reaches is divided by its own one.
        small: `small_cases` in place of the real sizes.
    """
    torch.manual_seed(0)
    rows = []
    for name in dtypes:
        dtype = getattr(torch, name)
        for make in track((small_cases if small else cases)(dtype, device), name):
            case = make()
            verify(case, dtype)
            rows.append(_row(case, name, rounds, device, ceilings))
    return rows


def _row(
    case: Case, dtype: str, rounds: int, device: str, ceilings: dict[str, float]
) -> dict[str, Any]:
    ways = {"ours": seconds(case.ours, device), "PyTorch": seconds(case.pytorch, device)}
    turn = sum(way() for way in ways.values())
    fitting = max(_FEWEST, min(rounds, int(_SECONDS / turn)))
    times = interleave(ways, fitting)
    ours = statistics.median(times["ours"])
    rate = case.amount / ours * 1e-9
    bound = "copy_gb_per_s" if case.unit == "GB/s" else f"{dtype}_gflop_per_s"
    return {
        "operator": case.operator,
        "case": case.name,
        "dtype": dtype,
        "rounds": fitting,
        "ms": ours * 1e3,
        "ms_spread": {key: value * 1e3 for key, value in spread(times["ours"]).items()},
        "pytorch_ms": statistics.median(times["PyTorch"]) * 1e3,
        "rate": rate,
        "unit": case.unit,
        "of_ceiling": rate / ceilings[bound],
    }
