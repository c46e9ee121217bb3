"""Random token drop: the schedule's boundaries and counts, and tokens that stay by lot."""

from __future__ import annotations

import torch
from torch import Tensor

from lazyllm_ext.hf import LazyCache

_MOST_NEW_TOKENS = 65536


class RandomScores:
    """Scores by lot, for `LazyDecoder.on_importance`: one for each token and boundary.

    A token keeps its score for the whole generation, so that it is not drawn anew, and revived, at
    every step. Tokens after the prompt score above all of the prompt's: only those are dropped.

    Args:
        prompt: number of tokens of the prompt.
        seed: another one, other scores.
        window: of the schedule; its pool is 1.

    Attributes:
        cache: of the generation that runs, batch 1; to be set before each step.
    """

    cache: LazyCache

    def __init__(self, prompt: int, seed: int, window: int):
        self.prompt, self.seed, self.window = prompt, seed, window
        self.scores: dict[int, Tensor] = {}

    def __call__(self, boundary: int, scored: Tensor) -> Tensor:
        """[K] -> [K] float32: what makes the importance of each token its score."""
        index = self._index(boundary, scored)
        # The importance becomes (1 - T/w) I + this / w, where I is 0 for a token seen first: so w
        # times its score makes that the importance, and the score itself leaves it there.
        scores = self._scores(boundary)[index.clamp(min=0).cpu()].to(scored)
        scores = torch.where(index >= self.cache.columns, self.window * scores, scores)
        return torch.where(index >= 0, scores, 0.0)

    def _index(self, boundary: int, scored: Tensor) -> Tensor:
        """Token index of each entry, -1 for unused ones."""
        state = self.cache.state
        assert state is not None  # made before the first layer
        if boundary > 0:
            return state.active[boundary - 1]
        index = torch.arange(scored.numel(), device=scored.device)
        return torch.where(index < state.host_length[0], index, -1)

    def _scores(self, boundary: int) -> Tensor:
        """[prompt + new tokens] float32, on the CPU: the same on every device."""
        if boundary not in self.scores:
            generator = torch.Generator().manual_seed(64 * self.seed + boundary)
            drawn = torch.rand(self.prompt, generator=generator)
            self.scores[boundary] = torch.cat([drawn, torch.full((_MOST_NEW_TOKENS,), 2.0)])
        return self.scores[boundary]
