"""The differential fuzzer: a short run always, longer ones by `make fuzz SEED=… MINUTES=…`."""

from __future__ import annotations

import os
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import COUNTS, Fuzz

SEED = int(os.environ.get("LAZYLLM_FUZZ_SEED", "0"))
MINUTES = float(os.environ.get("LAZYLLM_FUZZ_MINUTES", "0"))
OPTIONS = settings(
    max_examples=40,
    stateful_step_count=15,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def test_equal_or_refused_by_name() -> None:
    """One seed, or as many as the minutes allow; what fails is printed as steps."""
    end = time.monotonic() + 60 * MINUTES
    number = SEED
    while number == SEED or time.monotonic() < end:
        print(f"seed {number}")
        run_state_machine_as_test(seed(number)(Fuzz), settings=OPTIONS)
        number += 1
    print(dict(COUNTS))
    assert COUNTS["equal"] > 3 * COUNTS["refused"]  # refusing everything would prove nothing
