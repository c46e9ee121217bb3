"""One prompt under one contender: a prefill, then steps. Everything is batch 1."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lazyllm_ext.hf import Lazy, LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.lab.tools.cost import active_sets, prefill_operations

from .drop import RandomScores
from .subject import Subject


@dataclass(frozen=True)
class Kept:
    """The tokens of a prompt that go on after a layer; `layer` -1: before the first one."""

    layer: int
    tokens: list[int]


class Session(Protocol):
    """What a contender makes of one prompt."""

    stride: int  # how many tokens of a known continuation one step may take

    def prefill(self) -> Tensor:
        """Compute the prompt: logits [vocab] of its last token. This is what TTFT measures."""

    def step(self, ids: Tensor) -> Tensor:
        """Compute these tokens [T] after all before: logits [T, vocab]."""

    def fork(self) -> Session:
        """The same again, to be continued in another way."""

    def operations(self) -> int:
        """Of the prefill; to be asked for right after it."""

    def kept(self) -> list[Kept]:
        """What the prefill kept, where something was dropped; to be asked for right after it."""

    def computed_percent(self) -> float:
        """Mean over layers of the prompt's tokens whose whole layer was computed, up to now."""


class PlainSession:
    """Plain transformers on a prompt."""

    stride = 64

    def __init__(self, subject: Subject, ids: Tensor):
        self.subject, self.ids = subject, ids  # [k] what a prefill computes, the whole prompt
        self.positions = torch.arange(ids.numel(), device=ids.device)
        self.following = ids.numel()  # position of the first token after it
        self.stored = 0  # tokens that the cache holds
        self.cache: Any = None

    def prefill(self) -> Tensor:
        return self._call(self.ids, self.positions, 1)[-1]

    def step(self, ids: Tensor) -> Tensor:
        positions = self.following + torch.arange(ids.numel(), device=ids.device)
        self.following += ids.numel()
        return self._call(ids, positions, ids.numel())

    def _call(self, ids: Tensor, positions: Tensor, logits: int) -> Tensor:
        self.stored += ids.numel()
        # With a mask given, transformers takes gaps in the positions for nothing but positions.
        mask = torch.ones(1, self.stored, dtype=torch.int64, device=ids.device)
        with torch.no_grad():
            output = self.subject.model(
                ids[None],
                attention_mask=mask,
                position_ids=positions[None],
                **{CACHE_NAME: self.cache},
                use_cache=True,
                logits_to_keep=logits,
            )
        self.cache = output[CACHE_NAME]
        result: Tensor = output.logits[0]
        return result

    def fork(self) -> PlainSession:
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        return other

    def operations(self) -> int:
        return self.subject.dense_operations(self.ids.numel())

    def kept(self) -> list[Kept]:
        return []

    def computed_percent(self) -> float:
        return 100.0


class LazySession:
    """A model to which LazyLLM is applied; `scores`, by lot, stand in for the importance."""

    stride = 1  # a known continuation is fed as decoding would

    def __init__(self, lazy: Lazy, ids: Tensor, scores: RandomScores | None = None):
        self.lazy, self.ids, self.scores = lazy, ids, scores
        self.cache: LazyCache = lazy.new_cache()
        lazy.decoder.on_importance = scores

    def prefill(self) -> Tensor:
        return self._call(self.ids, 1)[-1]

    def step(self, ids: Tensor) -> Tensor:
        return self._call(ids, ids.numel())

    def _call(self, ids: Tensor, logits: int) -> Tensor:
        if self.scores is not None:
            self.scores.cache = self.cache
        output = self.lazy.model(ids[None], past_key_values=self.cache, logits_to_keep=logits)
        result: Tensor = output.logits[0]
        return result

    def fork(self) -> LazySession:
        other = copy.copy(self)
        other.cache = self.cache.copy()
        return other

    def _active(self) -> list[Tensor]:
        """A_1 … A_S of the last step, token indices."""
        assert self.cache.state is not None
        return active_sets(self.lazy.decoder, self.cache.state)

    def operations(self) -> int:
        return prefill_operations(self.lazy.decoder, self.ids.numel(), self._active()).total

    def kept(self) -> list[Kept]:
        layers = [layer for layer, at in enumerate(self.lazy.decoder.boundary_at) if at >= 0]
        active = (tokens.tolist() for tokens in self._active())
        return [Kept(*both) for both in zip(layers, active, strict=True)]

    def computed_percent(self) -> float:
        return self.cache.report().prompt_computed_percent


@dataclass(frozen=True)
class Reduction:
    """A prompt made shorter before the model computes it."""

    ids: Tensor  # [k] what is computed instead
    positions: Tensor  # [k] their positions
    following: int  # position of the first token after them
    kept: Kept  # tokens of the original prompt that are in it, and the layer that chose them
    operations: int  # what finding it took
    computed_percent: float  # with `ids` computed in all layers; see `Session.computed_percent`


class ReducedSession(PlainSession):
    """Plain transformers on a prompt that is made shorter first; finding out how is in TTFT."""

    reduction: Reduction  # once there is a prefill

    def __init__(self, subject: Subject, ids: Tensor, reduce: Callable[[], Reduction]):
        super().__init__(subject, ids)
        self.reduce = reduce

    def prefill(self) -> Tensor:
        self.reduction = self.reduce()
        self.ids, self.positions = self.reduction.ids, self.reduction.positions
        self.following = self.reduction.following
        return super().prefill()

    def operations(self) -> int:
        return self.reduction.operations + super().operations()

    def kept(self) -> list[Kept]:
        return [self.reduction.kept]

    def computed_percent(self) -> float:
        return self.reduction.computed_percent
