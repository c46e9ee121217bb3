"""One request on the model: prompt in, pieces of text and a completion out, by `model.generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from lazyllm_ext.hf import Lazy, Report, sampling_of

from .detokenizer import Detokenizer
from .errors import ApiError
from .prefix_caches import PrefixCaches
from .prompts import Prompts


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when it ends; `max_tokens` None for what the server allows."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True)
class GenerationRequest:
    """A request that fits the model."""

    tokens: list[int]  # of the prompt
    max_tokens: int  # the most that follow
    sampling: Sampling  # how they are chosen
    # Whether the answer's text goes on from the prompt's, as a chat's does not.
    continues_text: bool


@dataclass(frozen=True)
class Completion:
    """What a generation gave."""

    text: str  # without the stop string that ended it
    finish_reason: str  # "stop" for an end of the model's own or a stop string, "length" otherwise
    prompt_tokens: int  # of the whole prompt
    cached_tokens: int  # those of them that a cache held
    new_tokens: int  # generated ones, the one that ended it included
    waited_seconds: float  # in the queue
    ttft_seconds: float  # from the beginning of the generation to its first token
    tokens_per_second: float | None  # of the tokens after the first; None for a single one
    report: Report  # what LazyLLM computed


class Engine:
    """A model with LazyLLM, its tokenizer, and the caches of its conversations.

    `*_request` may be called by several threads, `generate` by one at a time.

    Args:
        max_tokens: of an answer whose request names no number.
        cache_bytes: budget of the caches that are kept; 0 for none.
        stop: strings that end every answer, beside those of its request.

    Raises:
        ValueError: the tokenizer's chat template is not one.
    """

    def __init__(
        self,
        lazy: Lazy,
        tokenizer: Any,
        *,
        max_tokens: int,
        cache_bytes: int,
        stop: tuple[str, ...] = (),
    ):
        self.lazy, self.tokenizer, self._max_tokens = lazy, tokenizer, max_tokens
        self._stop = stop
        self.caches = PrefixCaches(cache_bytes)
        config = lazy.model.config.get_text_config()
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        vocabulary: int = lazy.model.get_input_embeddings().num_embeddings
        self._prompts = Prompts(tokenizer, self._context, vocabulary)

    @property
    def most_bytes(self) -> int | None:
        """Of a request's JSON; None for no bound."""
        return self._prompts.most_bytes

    def chat_request(self, messages: list[dict[str, str]], sampling: Sampling) -> GenerationRequest:
        """A chat as the model's template writes it.

        Raises:
            ApiError: there is no template, it refuses the messages, or they are too long.
        """
        tokens = self._prompts.of_chat(messages)
        return self._request("messages", tokens, sampling, continues_text=False)

    def completion_request(self, prompt: str | list[int], sampling: Sampling) -> GenerationRequest:
        """A prompt as it is: text, or tokens.

        Raises:
            ApiError: it is empty, too long, or holds a number that is no token.
        """
        prompts = self._prompts
        tokens = prompts.of_text(prompt) if isinstance(prompt, str) else prompts.checked(prompt)
        return self._request("prompt", tokens, sampling, continues_text=True)

    def _request(
        self, name: str, tokens: list[int], sampling: Sampling, continues_text: bool
    ) -> GenerationRequest:
        if not tokens:
            raise ApiError(f"{name}: expected at least one token, got none", name)
        wanted = sampling.max_tokens
        max_tokens = wanted or self._max_tokens
        if self._context is not None:
            room = self._context - len(tokens)
            if room < (wanted or 1):
                answer = f"an answer of up to {wanted}" if wanted else "no room for an answer"
                raise ApiError(
                    f"{name}: expected at most {self._context} tokens, the model's context, with "
                    f"the answer; got {len(tokens)} and {answer}",
                    name,
                    code="context_length_exceeded",
                )
            max_tokens = min(max_tokens, room)
        return GenerationRequest(tokens, max_tokens, sampling, continues_text)

    def generate(
        self,
        request: GenerationRequest,
        emit: Callable[[str], object],
        left: Event,
        waited: float = 0.0,
    ) -> Completion:
        """Generate; `emit` is called with each piece of the text.

        The cache is kept for the next turn, also where the client left during decoding.

        Raises:
            ClientLeft: `left` was set before the text was complete.
        """
        if left.is_set():
            raise ClientLeft
        held_before = self.caches.take(request.tokens)
        cache = held_before or self.lazy.new_cache()
        before = request.tokens[-1:] if request.continues_text else ()
        stops = (*request.sampling.stop, *self._stop)
        detokenizer = Detokenizer(self.tokenizer, stops, before)
        watch = _TokenWatch(detokenizer, emit, left, self._ends())

        def layer_done(progress: object) -> None:
            if left.is_set():
                raise ClientLeft

        prompt = torch.tensor([request.tokens], device=self.lazy.model.device)
        sequences: Tensor = self.lazy.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            max_new_tokens=request.max_tokens,
            stopping_criteria=StoppingCriteriaList([watch]),
            # A conversation's cache would be lost in the middle of a prefill: its turn, which is
            # short, goes on to the first token instead.
            lazy_progress=None if held_before else layer_done,
            pad_token_id=self._pad(),
            **_generate_options(request.sampling),
        )
        held = sequences[0, : cache.get_seq_length()].tolist()  # not the last token: none followed
        self.caches.put(held, len(request.tokens), cache)
        if left.is_set():
            raise ClientLeft
        watch.end()
        report = cache.report()
        return Completion(
            text="".join(watch.pieces),
            finish_reason=watch.finish_reason,
            prompt_tokens=len(request.tokens),
            cached_tokens=report.cached_tokens,
            new_tokens=len(watch.times),
            waited_seconds=waited,
            ttft_seconds=watch.times[0],
            tokens_per_second=watch.tokens_per_second,
            report=report,
        )

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        ends = self.lazy.model.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)

    def _pad(self) -> int | None:
        pad: int | None = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad


class _TokenWatch(StoppingCriteria):
    """Sees every token: hands on its text, and ends the generation.

    No streamer: some versions of transformers ask the criteria before they tell the streamer.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        emit: Callable[[str], object],
        left: Event,
        ends: set[int],
    ):
        self._detokenizer, self._emit, self._left, self._ends = detokenizer, emit, left, ends
        self._started = perf_counter()
        self.times: list[float] = []  # of each token, seconds since the beginning
        self.pieces: list[str] = []
        self._ended = False

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        token = int(input_ids[0, -1])
        self.times.append(perf_counter() - self._started)
        self._ended = token in self._ends
        if not self._ended:
            self._hand_on(self._detokenizer.add(token))
        stop = self._detokenizer.stopped or self._left.is_set()
        return torch.full((1,), stop, dtype=torch.bool, device=input_ids.device)

    def end(self) -> None:
        """No more tokens come."""
        self._hand_on(self._detokenizer.end())

    def _hand_on(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            self._emit(piece)

    @property
    def finish_reason(self) -> str:
        return "stop" if self._ended or self._detokenizer.stopped else "length"

    @property
    def tokens_per_second(self) -> float | None:
        times = self.times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def _generate_options(sampling: Sampling) -> dict[str, Any]:
    """What `model.generate` takes: OpenAI's, and nothing of the model's own that OpenAI lacks."""
    options = sampling_of(sampling.temperature)
    if not options["do_sample"]:
        return options
    if sampling.seed is None:
        torch.seed()  # another client's seed does not decide this answer
    else:
        torch.manual_seed(sampling.seed)
    return {**options, "top_p": sampling.top_p, "top_k": 0}
