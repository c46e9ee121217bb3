"""lm-evaluation-harness's transformers model with LazyLLM applied to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

import lazyllm_ext
from lazyllm_ext.hf import LazyCache
from lazyllm_ext.json_input import shown

# (context and continuation as texts, or None; their tokens), as lm_eval hands them over.
LikelihoodRequest = tuple[Any, list[int], list[int]]
Likelihood = tuple[float, bool]


@register_model("lazyllm")
class LazyLM(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """A causal language model that drops unimportant tokens while it reads a context.

    `generate_until` is lm_eval's: the model's own `generate`, batches included. Log-likelihoods
    prefill the context pruned and then feed the continuation as decoding would, token by token,
    because a pruned prefill has no logits of early tokens. That is one request at a time; requests
    of the same context share its prefill.

    Args:
        pretrained: folder or name of a transformers model, or a loaded one.
        schedule: see `lazyllm_ext.apply`.
        device: a GPU where there is one, else the CPU.
        arguments: of lm_eval's `hf` model.

    Raises:
        ValueError: a model, a schedule or an argument that LazyLLM does not support.
    """

    def __init__(
        self,
        pretrained: Any,
        schedule: Any = "balanced",
        device: str | None = None,
        **arguments: Any,
    ):
        for name in ("mixed_precision_dtype", "parallelize", "tp_plan"):
            if arguments.get(name):
                raise ValueError(f"{name}: expected none with LazyLLM, got {arguments[name]!r}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(pretrained, device=device, **arguments)
        self.lazy = lazyllm_ext.apply(self.model, schedule)

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes about the model, and the schedule's content."""
        return {**super().get_model_info(), "lazyllm_schedule": self.lazy.schedule.to_dict()}

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        """One pass, only to find out which batch fits the memory: `batch_size=auto` asks for it."""
        return self._logits(inps, self.lazy.new_cache(), 1)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[LikelihoodRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        """log p of each continuation after its context, in nats, and whether greedy search says it.

        Contexts that are too long lose their beginning, as with lm_eval's `hf`, which neither takes
        a context or continuation without a token (an empty continuation would always win).
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (text, context, continuation) in enumerate(requests):
            _check_tokens("context", context, text)
            _check_tokens("continuation", continuation, text)
            groups.setdefault(self._fitting(context, continuation), []).append(number)
        found: dict[int, Likelihood] = {}
        silent = disable_tqdm or self.rank != 0
        bar = tqdm(total=len(requests), disable=silent, desc="loglikelihood")
        for fitting, numbers in groups.items():
            cache = self.lazy.new_cache()
            first = self._logits(self._row(fitting), cache, 1)[0]
            for number in numbers:
                text, _, continuation = requests[number]
                # The last one of a context may use its cache up.
                own = cache if number == numbers[-1] else cache.copy()
                found[number] = self._likelihood(first, own, continuation)
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, found[number])
                bar.update(1)
        bar.close()
        return [found[number] for number in range(len(requests))]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """The end of the context that the model has room for; the last token is never computed."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(
                f"continuation: expected at most {self.max_length} tokens, the model's context, "
                f"got {len(continuation)}"
            )
        return tuple(context[-room:])

    def _likelihood(self, first: Tensor, cache: LazyCache, continuation: list[int]) -> Likelihood:
        """Of a continuation after a context with `first`, logits [1, vocab]; uses the cache up."""
        tokens = self._row(continuation)
        # Without boundaries nothing is dropped, and one step may take all.
        stride = 1 if self.lazy.decoder.boundaries else max(1, tokens.size(1) - 1)
        parts = [first]
        for begin in range(0, tokens.size(1) - 1, stride):
            fed = tokens[:, begin : min(begin + stride, tokens.size(1) - 1)]
            parts.append(self._logits(fed, cache, fed.size(1))[0])
        logits = torch.cat(parts).log_softmax(-1, dtype=self.softmax_dtype)
        chosen = logits.gather(1, tokens.T)
        return float(chosen.sum()), bool((logits.argmax(-1) == tokens[0]).all())

    def _logits(self, tokens: Tensor, cache: LazyCache, keep: int) -> Tensor:
        """tokens [B, T] after what the cache holds -> logits [B, keep, vocab]."""
        output = self.model(tokens, past_key_values=cache, logits_to_keep=keep)
        logits: Tensor = output.logits
        return logits

    def _row(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], dtype=torch.int64, device=self.device)


def _check_tokens(name: str, tokens: Sequence[int], text: Any) -> None:
    if not tokens:
        raise ValueError(f"{name}: expected at least one token, got none, in {shown(text)}")
