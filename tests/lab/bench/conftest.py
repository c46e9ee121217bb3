"""A measurement of a tiny random model, made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lazyllm_ext.lab.bench import BenchRequest, measure

REQUEST = {"model": "random:tiny", "new_tokens": 3, "rounds": (1,), "schedules": ("fast",)}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny matrices are much slower on several threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def small_ceilings() -> Iterator[None]:
    """The machine's ceilings take a quarter of a gigabyte and a second; a test needs neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazyllm_ext.lab.tools.machine._COPY_MEBIBYTES", 1)
        patch.setattr("lazyllm_ext.lab.tools.machine._PRODUCT", {"cpu": (64, 64, 64)})
        yield


@pytest.fixture(scope="session")
def result(small_ceilings: None) -> dict[str, Any]:
    """Four lengths; `fast` drops tokens from 512 on."""
    return measure(BenchRequest(lengths=(64, 128, 600, 640), memory=False, **REQUEST))
