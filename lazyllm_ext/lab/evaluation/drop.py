"""Random token drop: the schedule's boundaries and counts, and tokens that stay by lot."""

from __future__ import annotations

import torch
from torch import Tensor

from lazyllm_ext.hf import LazyCache

_MOST_NEW_TOKENS = 65536
_ABOVE_ALL = 2.0


class RandomScores:
    """Scores by lot, for `LazyDecoder.on_importance`: one for each token.

    A token has the same score at every boundary and in every step, so that nothing is drawn anew,
    and revived, while decoding. What the schedule protects in the prefill (its last `window`
    tokens) and what comes after it score above all others, and so are not dropped later.
    """

    cache: LazyCache  # of the generation that runs, batch 1; to be set before each step

    def __init__(self, prompt: int, seed: int, window: int):
        self.window = window  # of the schedule; its pool is 1
        # Drawn on the CPU: the same on every device.
        drawn = torch.rand(prompt, generator=torch.Generator().manual_seed(seed))
        self.scores = torch.cat([drawn, torch.full((_MOST_NEW_TOKENS,), _ABOVE_ALL)])
        self.scores[max(0, prompt - window) : prompt] = _ABOVE_ALL

    def __call__(self, boundary: int, scored: Tensor) -> Tensor:
        """[K] -> [K] float32: what makes the importance of each token its score."""
        index = self._index(boundary, scored)
        # The importance becomes (1 - T/w) I + this / w, where I is 0 for a token seen first: so w
        # times its score makes that the importance, and the score itself leaves it there.
        scores = self.scores[index.clamp(min=0).cpu()].to(scored)
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
