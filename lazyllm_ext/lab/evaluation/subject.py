"""The model under test: its tokens, its operations, and the chunks of plain transformers calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.hf import as_chat, check_tokens
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.lab.tools.cost import prefill_operations
from lazyllm_ext.lab.tools.dense import nats

from .tasks import Item


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it."""

    text: str  # the text that was tokenized, chat template and answer prefix included
    ids: Tensor  # [n] int64, on the model's device
    # For each token its begin and end in `text`; both equal for what the tokenizer added.
    spans: tuple[tuple[int, int], ...]


class Subject:
    """A model and its tokenizer, and how items become prompts.

    Args:
        model: a causal language model of a supported family, in inference mode, without LazyLLM.
        tokenizer: its tokenizer; one that tells where in the text each token is (a "fast" one).
        chat: use the chat template, where there is one, for the items that say `chat`.
        answer_prefix: append an item's `answer_prefix` where no chat template is used.

    Raises:
        ValueError: a model that LazyLLM does not support, or a tokenizer that is not fast.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, chat: bool = True, answer_prefix: bool = False
    ):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                "tokenizer: expected one that gives the place of each token (a fast one), "
                f"got {type(tokenizer).__name__}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.chat, self.answer_prefix = chat, answer_prefix
        self.dense_decoder = LazyDecoder.from_model(model, "dense")
        self.stop = _stop_tokens(model, tokenizer)

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and answer; None for no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def uses_template(self, item: Item) -> bool:
        """Whether the item's prompt becomes a turn of a chat."""
        return self.chat and item.chat and bool(getattr(self.tokenizer, "chat_template", None))

    def too_long(self, item: Item, tokens: int, more: int) -> str | None:
        """A sentence about an item whose prompt and answer of `more` tokens pass the context."""
        if self.context is None or tokens + more <= self.context:
            return None
        return (
            f"{item.id}: expected at most {self.context} tokens, the model's context, with the "
            f"answer; got {tokens} and {more}"
        )

    def encode(self, item: Item, text: str | None = None) -> Prompt:
        """The item's prompt, or another text in its place, as the model gets it.

        Raises:
            ValueError: it has no token, or one that the model does not have, or the chat template
                fails.
        """
        text = item.prompt if text is None else text
        special = not self.uses_template(item)
        if not special:
            turn = [{"role": "user", "content": text}]
            text = as_chat(self.tokenizer, turn)
        elif self.answer_prefix:
            text += item.answer_prefix
        return self.tokens(text, special)

    def tokens(self, text: str, special: bool = False) -> Prompt:
        """Any text; `special`: with the tokens that the tokenizer puts around a text."""
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        if not encoded["input_ids"]:
            raise ValueError("prompt: expected at least one token, got none")
        check_tokens(self.model, encoded["input_ids"])
        ids = torch.tensor(encoded["input_ids"], device=self.model.device)
        return Prompt(text, ids, tuple((begin, end) for begin, end in encoded["offset_mapping"]))

    def decode(self, tokens: list[int]) -> str:
        """Text of generated tokens, without special ones."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def dense_operations(self, tokens: int) -> int:
        """Operations of a dense prefill; see `lazyllm_ext.lab.tools.cost`."""
        return prefill_operations(self.dense_decoder, tokens).total

    def surprise(self, ids: Tensor, chunk: int = 256) -> Tensor:
        """Self-information -log p(token | tokens before it) in nats, [n] float32 on the CPU.

        The first token's is infinite: nothing comes before it.
        """
        parts = [torch.tensor([float("inf")])]
        cache = None
        for begin in range(0, ids.numel(), chunk):
            fed, following = ids[begin : begin + chunk], ids[begin + 1 : begin + 1 + chunk]
            with torch.no_grad():
                output = self.model(fed[None], use_cache=True, **{CACHE_NAME: cache})
            cache = output[CACHE_NAME]
            parts.append(nats(output.logits[0, : following.numel()], following).cpu())
        return torch.cat(parts)


def _stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation settings and the tokenizer."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*listed, tokenizer.eos_token_id) if end is not None)
