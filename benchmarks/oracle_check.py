"""A pruned schedule against the tests' oracle, which an installed package does not have."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from lazyllm_ext import LazyDecoder
from lazyllm_ext.lab.bench import BenchError
from lazyllm_ext.lab.bench.model import Model
from lazyllm_ext.lab.bench.verify import TOLERANCE
from lazyllm_ext.lab.tools.cost import active_sets
from lazyllm_ext.schedule import PruningSchedule

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers import full_attention
from oracle import Oracle

_TOKENS = 384


def verify_pruned(model: Model, schedule: str) -> None:
    """In every stage the tokens of the oracle, up to a near tie, and its last logits.

    In float32 on the CPU only: in half precision rounding decides too often who is selected, and on
    a GPU `pytest -m gpu` compares the operators.

    Raises:
        BenchError: they are not, beyond `TOLERANCE` of the largest logit.
    """
    if model.device != "cpu" or model.model.dtype != torch.float32:
        return
    ids = model.prompt(_TOKENS)
    loaded = PruningSchedule.load(schedule).for_model(model.model.config.name_or_path)
    pruned = replace(loaded, min_tokens=0)
    decoder = LazyDecoder.from_model(model.model, pruned)
    with torch.no_grad():
        hidden = decoder.embed_tokens(ids)
        state = decoder.new_state(1, hidden)
        logits = decoder.step(hidden, torch.arange(_TOKENS), [_TOKENS], state, 1)
        active = [kept.tolist() for kept in active_sets(decoder, state)]
        if any(len(stage) == _TOKENS for stage in active):
            raise BenchError(f"{schedule}: cannot be verified: it drops none of {_TOKENS} tokens")
        oracle = Oracle(model.model, pruned.resolve(full_attention(model.model)))
        expected = oracle.step(ids.tolist(), list(range(_TOKENS)), 1, follow=active)
    error = float((logits - expected).abs().max() / expected.abs().max())
    if active != oracle.active[1:] or not error <= TOLERANCE[model.model.dtype]:
        raise BenchError(f"{schedule}: not what the oracle computes; logits differ by {error:.1e}")
