"""One model, run by transformers, compiled, and under every schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import lazyllm_ext
from lazyllm_ext import state as book
from lazyllm_ext.hf import load_model, load_tokenizer, settle_defaults
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.lab.tools.clock import TokenClock
from lazyllm_ext.lab.tools.cost import active_sets

from .request import RANDOM, BenchRequest

# Shapes that random weights can take: where only time and memory are looked at.
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
SHAPES = {
    "tiny": (128, 64, 128, 6, 4, 2),
    "llama-2-7b": (32000, 4096, 11008, 32, 32, 32),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8),
}
_CONTEXT = 131072  # of the shapes; rotary embeddings do not care


@dataclass(frozen=True)
class TimedGeneration:
    """One generation by one contender."""

    ttft: float  # seconds until the first token was there
    per_token: float  # seconds for each token after it; 0 where there is none
    generation: float  # seconds for all
    kv_bytes: int  # this and the next: held at the end, spare room included
    aux_bytes: int
    needed_bytes: int  # of the sets alone: C_s in every layer, and what waits
    tokens: list[int]  # what was generated
    # The active sets A_1 … A_S after the last step; None for transformers.
    kept: list[Tensor] | None


class Model:
    """One model with its tokenizer and text."""

    def __init__(self, source: str, dtype: str, device: str = "cpu"):
        self.source, self.device = source, device
        self.tokenizer = None
        self.own_settings: str | None = None  # what the model's files ask for without effect
        if source.startswith(RANDOM):
            self.model = _random_model(source.removeprefix(RANDOM), dtype, device)
        else:
            self.tokenizer = load_tokenizer(source, local_files_only=True)
            self.model = load_model(
                source,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                local_files_only=True,
            )
            self.model = self.model.to(device)
            self.own_settings = settle_defaults(self.model, greedy=True).sentence()
        self.model.eval().requires_grad_(False)
        self.text = self._text()
        self._compiled: Any = None

    def _text(self) -> Tensor:
        """Ids of a real text, or random ones for random weights."""
        if self.tokenizer is None:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(3, self.model.config.vocab_size, (8192,), generator=generator)
        text = (resources.files("lazyllm_ext.demo") / "document.txt").read_text("utf-8")
        return torch.tensor(self.tokenizer(text)["input_ids"])

    def prompt(self, tokens: int, start: int = 0) -> Tensor:
        """[tokens] ids of the text, from `start` on, beginning again at its end."""
        repeats = (start + tokens) // self.text.numel() + 1
        return self.text.repeat(repeats)[start : start + tokens].to(self.device)

    def check_context(self, request: BenchRequest) -> None:
        """Raises ValueError for a prompt that the model was not made for."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = request.lengths[-1] + request.new_tokens
        if limit is not None and longest > limit:
            raise ValueError(
                f"prompt lengths: expected at most {limit} tokens, the model's context, with "
                f"{request.new_tokens} new ones, got {request.lengths[-1]}"
            )

    @contextmanager
    def under(self, contender: str) -> Iterator[lazyllm_ext.Lazy | None]:
        """The model as `transformers`, `compiled`, or under the schedule of that name."""
        if contender == "transformers":
            yield None
        elif contender == "compiled":
            if self._compiled is None:
                # A generation makes more shapes (first prefill, mask, cache) than the default 8.
                torch._dynamo.config.recompile_limit = 64
                self._compiled = torch.compile(self.model.forward, dynamic=True)
            self.model.forward = self._compiled
            try:
                yield None
            finally:
                del self.model.forward
        else:
            with lazyllm_ext.apply(self.model, contender) as lazy:
                yield lazy

    def generate(
        self,
        contender: str,
        ids: Tensor,
        new_tokens: int,
        around: Callable[[lazyllm_ext.Lazy | None], AbstractContextManager[Any]] = nullcontext,
    ) -> TimedGeneration:
        """One timed greedy generation of exactly `new_tokens` tokens for [n] ids.

        Args:
            around: entered while the contender is in place; gets what `apply` returned, None for
                transformers itself.
        """
        with self.under(contender) as lazy, around(lazy):
            self.synchronize()
            clock = TokenClock()
            result = self.model.generate(
                ids[None],
                attention_mask=torch.ones_like(ids[None]),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                streamer=clock,
                pad_token_id=0,
                return_dict_in_generate=True,
            )
            generation = clock.seconds()
            cache = result[CACHE_NAME]
            if lazy is None:
                kv = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
                stored, kept = (kv, 0, kv), None
            else:
                stored = (cache.kv_nbytes(), cache.aux_nbytes(), _needed(lazy, cache.state))
                kept = active_sets(lazy.decoder, cache.state)
        tokens = result.sequences[0, ids.numel() :].tolist()
        return TimedGeneration(clock.ttft, clock.per_token, generation, *stored, tokens, kept)

    def synchronize(self) -> None:
        """Wait for what runs on a GPU."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


def _random_model(name: str, dtype: str, device: str) -> Any:
    if name not in SHAPES:
        raise ValueError(f"model: expected {RANDOM} and one of {', '.join(SHAPES)}, got {name!r}")
    sizes: dict[str, Any] = dict(zip(_SIZES, SHAPES[name], strict=True))
    config = LlamaConfig(**sizes, max_position_embeddings=_CONTEXT, eos_token_id=None)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )


def _needed(lazy: lazyllm_ext.Lazy, state: Any) -> int:
    """Bytes of keys and values of C_s in every layer, and of the hidden states that wait."""
    spec, size = lazy.decoder.spec, lazy.model.dtype.itemsize
    need = 0
    for layers, counts in zip(spec.stage_layers, book.computed_per_stage(state), strict=True):
        for layer in layers:
            need += 2 * sum(counts) * spec.num_kv_heads[layer] * spec.head_dim[layer] * size
    waiting = sum(sum(counts) for counts in book.waiting_per_boundary(state))
    return int(need + waiting * spec.hidden_size * size)
