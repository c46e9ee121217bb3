"""What the dense model does after a prompt, and what of its computation every candidate shares."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.lab.evaluation.static import SCORING
from lazyllm_ext.lab.tools.dense import (
    DenseContinuation,
    full_attention,
    greedy,
    log_probabilities,
)
from lazyllm_ext.schedule import Boundary, PruningSchedule

from .curves import Recall, recalls


@dataclass(frozen=True)
class Reference(DenseContinuation):
    """One prompt under the dense model: how it goes on, and what was computed on the way."""

    prompt_tokens: int  # n
    # By layer, what enters it: [n + tokens - 1, hidden], in the memory of the host.
    hidden: dict[int, Tensor]
    curve: list[Recall]  # see `curves.recalls`

    def keep_hidden(self, layers: Collection[int]) -> None:
        """Forget what enters other layers."""
        for layer in [layer for layer in self.hidden if layer not in layers]:
            del self.hidden[layer]


class DenseModel:
    """The dense model, looked at from inside.

    It is a decoder that scores in every layer where tokens may be dropped, and drops none.

    Args:
        model: a causal language model of a supported family, without LazyLLM.

    Raises:
        ValueError: a model that LazyLLM does not support, or one without a layer for a boundary.
    """

    def __init__(self, model: Any):
        dense = LazyDecoder.from_model(model, PruningSchedule())
        # Where a boundary may be, ascending.
        self.layers = [n for n, full in enumerate(full_attention(dense)) if full]
        if self.layers[-1:] == [dense.num_layers - 1]:
            self.layers.pop()
        if not self.layers:
            raise ValueError(
                "model: expected one with a full-attention layer before the last layer, got "
                f"{dense.num_layers} layers without one"
            )
        boundaries = tuple(Boundary(layer=layer, keep=1.0) for layer in self.layers)
        self.decoder = LazyDecoder.from_model(model, replace(SCORING, boundaries=boundaries))

    @torch.no_grad()
    def reference(
        self, ids: Tensor, new_tokens: int, stop: Collection[int], keep: Collection[int] = ()
    ) -> Reference:
        """Compute a prompt and its greedy continuation.

        Args:
            ids: [n] int64, on the model's device.
            new_tokens: most tokens of the continuation.
            stop: tokens that end it.
            keep: layers, what enters which is kept.
        """
        count = ids.numel()
        entering: dict[int, list[Tensor]] = {layer: [] for layer in keep}
        scores: dict[int, Tensor] = {}
        attention: dict[int, Tensor] = {}

        def on_importance(boundary: int, scored: Tensor) -> Tensor:
            layer, mine = self.layers[boundary], scored[:count].cpu()
            if layer not in scores:  # the prompt's own last queries
                scores[layer] = mine / SCORING.window
            else:
                attention[layer] = attention.get(layer, torch.zeros(count)) + mine
            return scored

        state = self.decoder.new_state(1, self.decoder.embed_tokens(ids[:1]))

        def step(ids: Tensor) -> Tensor:
            positions = state.host_length[0] + torch.arange(ids.numel(), device=ids.device)
            with _noting(self.decoder, entering):
                logits: Tensor = self.decoder(ids, positions, [ids.numel()], state)
            return logits

        self.decoder.on_importance = on_importance
        try:
            taken = list(greedy(step(ids)[-1], step, new_tokens, stop))
            tokens = [token for token, _ in taken]
            # The last one is fed too, though nothing comes after it: its attention counts in the
            # curves, and an answer of one token would have none without it.
            step(ids.new_tensor(tokens[-1:]))
        finally:
            self.decoder.on_importance = None
        held = count + len(tokens) - 1
        return Reference(
            tokens,
            log_probabilities([logits for _, logits in taken]),
            count,
            {layer: torch.cat(parts)[:held] for layer, parts in entering.items()},
            recalls(scores, attention),
        )


@contextmanager
def _noting(decoder: LazyDecoder, entering: dict[int, list[Tensor]]) -> Iterator[None]:
    """While a step runs: appends what enters each layer of `entering`, copied to the host."""
    seen: dict[int, Tensor] = {}
    handles: list[Any] = []
    for layer in entering:

        def look(module: Any, inputs: Any, layer: int = layer) -> None:
            # A boundary norms its rows twice: the first time all that enter.
            seen.setdefault(layer, inputs[0])

        norm: Any = decoder.layers[layer].input_norm
        handles.append(norm.register_forward_pre_hook(look))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for layer, hidden in seen.items():
        entering[layer].append(hidden.cpu())
