"""The latest turn of a conversation: a prompt and the tokens generated after it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter

import torch

from lazyllm_ext.state import LazyState, revived


@dataclass
class Turn:
    """Clock and counters of a prompt and the tokens generated after it."""

    started: float | None  # None: in another process
    cached_tokens: list[int]  # n of each sequence before the prompt
    revived: list[int]  # per boundary, before the prompt
    context_tokens: list[int] = field(default_factory=list)  # n of each sequence with the prompt
    # Tokens of each sequence that were computed to the end of the last layer, of all the context.
    finished: list[int] = field(default_factory=list)
    prompt_done: float = 0.0
    last_done: float = 0.0

    @staticmethod
    def begun(started: float, state: LazyState) -> Turn:
        """A prompt that the state is about to get."""
        return Turn(started, list(state.host_length), revived(state))

    @staticmethod
    def unknown(state: LazyState) -> Turn:
        """Stands for what filled a state that was loaded: all its tokens were there before."""
        lengths = list(state.host_length)
        return Turn(None, lengths, revived(state), lengths, list(state.finished))

    def end_prompt(self, state: LazyState, drafted: int) -> None:
        """The prompt is computed, and after it so many tokens that only may be generated ones."""
        device = state.length.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # once per generation: now the logits are there
        self.end_step()
        self.prompt_done = self.last_done
        self.context_tokens = [length - drafted for length in state.host_length]
        self.finished = list(state.finished)

    def end_step(self) -> None:
        """The tokens after it are computed so far."""
        self.last_done = perf_counter()

    def cropped(self, lengths: list[int]) -> Turn:
        """The same turn once every sequence has at most `lengths` tokens.

        Which tokens were finished is not stored, so their number becomes an upper bound.
        """
        context = list(map(min, self.context_tokens, lengths))
        return replace(
            self,
            cached_tokens=list(map(min, self.cached_tokens, lengths)),
            context_tokens=context,
            finished=list(map(min, self.finished, context)),
        )

    def of_sequences(self, order: list[int]) -> Turn:
        """The same turn of sequences order[0], order[1], …"""
        return replace(
            self,
            cached_tokens=[self.cached_tokens[place] for place in order],
            context_tokens=[self.context_tokens[place] for place in order],
            finished=[self.finished[place] for place in order],
        )
