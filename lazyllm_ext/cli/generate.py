"""`lazyllm-ext generate`: one prompt, one answer, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor
from transformers.generation.streamers import TextStreamer

import lazyllm_ext
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.schedule import PruningSchedule

from . import show
from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device
from .prompt import encode

_WARM_UP_TOKENS = 64


@dataclass(frozen=True)
class Request:
    """The command's options, as the user gave them; `text` is prompt and question."""

    model: str
    text: str
    schedule: str
    max_new_tokens: int
    compare: bool
    json: bool
    chat: bool | None
    dtype: str
    device: str
    temperature: float
    seed: int | None


@dataclass(frozen=True)
class Answer:
    """What one generation gave, and when its tokens came.

    Attributes:
        tokens: the new tokens.
        text: the same as text, without special tokens.
        ttft: seconds from the call of `generate` to its first token.
        tokens_per_second: of the tokens after the first; None for a single token.
        kv_bytes: of the cache, if it is transformers' own.
    """

    tokens: list[int]
    text: str
    ttft: float
    tokens_per_second: float | None
    kv_bytes: int | None


class Stream(TextStreamer):
    """Hands text on as it is finished, and notes when each token came."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.before_first: Callable[[], None] = lambda: None
        self.started = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter() - self.started)
            if len(self.times) == 1:
                self.before_first()
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


def generate(request: Request) -> int:
    """Run the command; returns the exit status.

    Raises:
        CommandError: before anything is computed, for what does not fit.
    """
    with as_input_error(ValueError):
        schedule = PruningSchedule.load(request.schedule)
    device = pick_device(request.device)
    folder = find_folder(request.model, quiet=request.json)
    tokenizer, model = load(folder, request.dtype, device)
    ids = encode(tokenizer, request.text, request.chat)
    _check_context(model, ids.size(1), request.max_new_tokens)
    with as_input_error(ValueError, TypeError):
        lazy = lazyllm_ext.apply(model, schedule)
    run = Run(request, folder.name, tokenizer, lazy, ids.to(device))
    try:
        return run.all()
    except KeyboardInterrupt:
        if not request.json:
            print()
        raise CommandError(f"interrupted after {run.tokens_so_far} tokens", status=130) from None


def _check_context(model: Any, prompt_tokens: int, new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise CommandError(
            f"prompt: expected at most {limit} tokens, the model's context, with the answer; got "
            f"{prompt_tokens} and an answer of up to {new_tokens} (--max-new-tokens)"
        )


class Run:
    """One request on one loaded model."""

    def __init__(
        self, request: Request, name: str, tokenizer: Any, lazy: lazyllm_ext.Lazy, ids: Tensor
    ):
        self.request, self.name, self.tokenizer = request, name, tokenizer
        self.lazy, self.model, self.ids = lazy, lazy.model, ids  # ids [1, n]
        self.stream = self._new_stream()

    @property
    def tokens_so_far(self) -> int:
        """New tokens of the generation that runs."""
        return len(self.stream.times)

    def all(self) -> int:
        """Answer, compare if asked, and print."""
        with self.lazy:
            self._warm_up()
            with self._progress() as end_progress:
                lazily = self._answer(end_progress)
            report = self.lazy.report()
        dense = None
        if self.request.compare:
            if not self.request.json:
                print("\n\nThe dense model, for comparison:\n", flush=True)
            self._warm_up()
            dense = self._answer()
        outcome = show.Outcome(
            model=self.name,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.model.device),
            schedule=self.lazy.schedule.name or self.request.schedule,
            report=report,
            lazy=lazily,
            dense=dense,
        )
        if self.request.json:
            print(outcome.to_json())
        else:
            print("\n", flush=True)
            show.tables(outcome)
        return 0

    def _new_stream(self) -> Stream:
        def write(text: str) -> None:
            if not self.request.json:
                print(text, end="", flush=True)

        return Stream(self.tokenizer, write)

    def _answer(self, before_first: Callable[[], None] = lambda: None) -> Answer:
        """One generation, streamed."""
        self.stream = self._new_stream()
        self.stream.before_first = before_first
        result = self._generate(self.ids, self.request.max_new_tokens, streamer=self.stream)
        tokens = result.sequences[0, self.ids.size(1) :].tolist()
        times = self.stream.times
        cache = result[CACHE_NAME]
        return Answer(
            tokens=tokens,
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
            ttft=times[0],
            tokens_per_second=(
                (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
            ),
            kv_bytes=(
                sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
                if cache.layers
                else None
            ),
        )

    def _generate(self, ids: Tensor, new_tokens: int, **more: Any) -> Any:
        request = self.request
        if request.seed is not None:
            torch.manual_seed(request.seed)
        sampling: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            sampling["temperature"] = request.temperature
        pad = self.tokenizer.pad_token_id
        return self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            return_dict_in_generate=True,
            **sampling,
            **more,
        )

    def _warm_up(self) -> None:
        """The first calls in a process pay for what later ones find ready."""
        if self.request.compare:
            self._generate(self.ids[:, :_WARM_UP_TOKENS], 2)

    @contextmanager
    def _progress(self) -> Iterator[Callable[[], None]]:
        """A bar over the layers of the prefill; yields what ends it."""
        console, decoder = Console(stderr=True), self.lazy.decoder
        if self.request.json or not console.is_terminal:
            yield lambda: None
            return
        # Drawn once a layer and not by a thread of its own, which would cost time that is measured.
        with Progress(
            TextColumn("prefill"),
            BarColumn(),
            TextColumn("layer {task.completed} of {task.total}, {task.fields[rows]:,} tokens"),
            console=console,
            transient=True,
            auto_refresh=False,
        ) as progress:
            task = progress.add_task("", total=decoder.num_layers, rows=self.ids.size(1))

            def on_layer(layer: int, rows: int) -> None:
                progress.update(task, completed=layer + 1, rows=rows, refresh=True)

            def end() -> None:
                decoder.on_layer = None
                progress.stop()

            decoder.on_layer = on_layer
            try:
                yield end
            finally:
                end()
