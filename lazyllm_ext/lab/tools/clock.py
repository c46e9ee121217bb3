"""Clocks: seconds since a moment, and when each new token came."""

from __future__ import annotations

import time

from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self.begin


class TokenClock(BaseStreamer):
    """Remembers when each new token came; a streamer for `generate`."""

    def __init__(self) -> None:
        self.seconds = Clock()
        self.times: list[float] = []  # of each new token, seconds since this was made
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """What `generate` calls: first with the prompt, which is not counted."""
        if not self._prompt:
            self.tick()
        self._prompt = False

    def end(self) -> None:
        """What `generate` calls last."""

    def tick(self) -> None:
        """A new token is there."""
        self.times.append(self.seconds())

    @property
    def ttft(self) -> float:
        """Seconds until the first token."""
        return self.times[0]

    @property
    def per_token(self) -> float:
        """Seconds for each token after the first; 0 where there is none."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)
