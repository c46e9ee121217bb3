"""What a model answers under `apply`, turn after turn: what every export must answer too."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from cli.conftest import folder, run
from helpers import at_any_length
from hf.conftest import REAL_MODELS, one_thread
from torch import nn

import lazyllm_ext
from lazyllm_ext.hf.models.versions import CACHE_NAME

__all__ = ["REAL_MODELS", "folder", "one_thread", "run"]  # fixtures, and what they are made from

# `make test` names the program that `make ctest` built; without CMake there is none.
collect_ignore = [] if os.environ.get("LAZYLLM_GENERATE") else ["test_cpp.py"]

# Shipped schedules, and one whose steps have fixed shapes.
SCHEDULES: dict[str, Any] = {
    "dense": "dense",
    "balanced": at_any_length("balanced"),
    "fast": at_any_length("fast"),
    "bounded": {
        "boundaries": [{"depth": 0.3, "keep": 0.5}, {"depth": 0.6, "keep": 0.3}],
        "window": 2,
        "pool": 3,
        "max_revive": 2,
    },
}


def answers(
    model: nn.Module, schedule: Any, turns: list[list[int]], new_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """The greedy answer to each turn of a conversation, and the revived tokens per boundary."""
    ids: list[int] = []
    given: list[list[int]] = []
    cache = None
    with lazyllm_ext.apply(model, schedule) as lazy:
        for turn in turns:
            ids = [*ids, *turn]
            cache = lazy.new_cache() if cache is None else cache
            output: Any = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                **{CACHE_NAME: cache},
            )
            given.append(output.sequences[0, len(ids) :].tolist())
            ids = output.sequences[0].tolist()
        assert cache is not None
        return given, cache.state.revived.tolist()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: runs a real model, found by an environment variable")
