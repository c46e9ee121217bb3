"""One prompt on one loaded model: its answer as it comes, and when each token came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import TextStreamer

from lazyllm_ext.hf import sampling_of
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.lab.tools.clock import TokenClock

_WARM_UP_TOKENS = 64


@dataclass(frozen=True)
class TimedAnswer:
    """What one generation gave, and when its tokens came."""

    tokens: list[int]  # the new tokens
    text: str  # the same as text, without special tokens
    ttft: float  # seconds from the call of `generate` to its first token
    tokens_per_second: float | None  # of the tokens after the first; None for a single token
    kv_bytes: int | None  # of the cache, if it is transformers' own


class TimedStreamer(TextStreamer):
    """Hands text on as it is finished, and notes when each token came.

    Before the first text, when the first token is there, `before_first` is called once.
    """

    def __init__(
        self, tokenizer: Any, write: Callable[[str], None], before_first: Callable[[], None]
    ):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.before_first = write, before_first
        self.clock = TokenClock()

    def put(self, value: Tensor) -> None:
        self.clock.put(value)
        if len(self.clock.times) == 1:
            self.before_first()
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


class Generation:
    """Answers one prompt, ids [1, n] on the model's device, as often as it is asked to.

    `write` is given the answer's text as it comes. A temperature of 0 is greedy search. What ends
    an answer, beside the model's own tokens: `stop_strings`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ids: Tensor,
        write: Callable[[str], None],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop_strings: Sequence[str] = (),
    ):
        self.model, self.tokenizer, self.ids = model, tokenizer, ids
        self.write, self.max_new_tokens, self.seed = write, max_new_tokens, seed
        self.sampling = sampling_of(temperature)
        self.stop_strings = list(stop_strings)
        self._streamer: TimedStreamer | None = None

    @property
    def tokens_so_far(self) -> int:
        """New tokens of the answer that is coming."""
        return len(self._streamer.clock.times) if self._streamer else 0

    def answer(self, before_first: Callable[[], None] = lambda: None, **more: Any) -> TimedAnswer:
        """One generation, streamed; `more` are arguments of the model's `generate`."""
        streamer = self._streamer = TimedStreamer(self.tokenizer, self.write, before_first)
        result = self._generate(self.ids, self.max_new_tokens, streamer=streamer, **more)
        tokens = result.sequences[0, self.ids.size(1) :].tolist()
        clock, layers = streamer.clock, result[CACHE_NAME].layers
        return TimedAnswer(
            tokens=tokens,
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
            ttft=clock.ttft,
            tokens_per_second=1 / clock.per_token if len(tokens) > 1 else None,
            kv_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) or None,
        )

    def warm_up(self) -> None:
        """The first calls in a process pay for what later ones find ready."""
        self._generate(self.ids[:, :_WARM_UP_TOKENS], 2)

    def _generate(self, ids: Tensor, max_new_tokens: int, **more: Any) -> Any:
        if self.seed is not None:
            torch.manual_seed(self.seed)
        pad = self.tokenizer.pad_token_id
        if self.stop_strings:
            ends = StopStringCriteria(self.tokenizer, self.stop_strings)
            more["stopping_criteria"] = StoppingCriteriaList([ends])
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            return_dict_in_generate=True,
            **self.sampling,
            **more,
        )
