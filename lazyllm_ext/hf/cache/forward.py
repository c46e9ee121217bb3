"""One call of a model: padded inputs in, one decoder step, logits out."""

from __future__ import annotations

from collections.abc import Container, Mapping
from time import perf_counter
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.errors import refusal
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.state import LazyState

from .cache import LazyCache
from .inputs import PackedInputs, pack_inputs
from .plan import Plan
from .progress import watched
from .report import Turn


def usable_cache(past: Any, plan: Plan, known: Container[Plan]) -> LazyCache:
    """The cache to go on with: the one given, or a new one for none or for an empty DynamicCache.

    Args:
        plan: of a new one.
        known: the plans of this `apply`.

    Raises:
        NotSupportedError: another kind of cache, or tokens computed without LazyLLM.
        ValueError: a cache of another `apply`, or one that is not complete.
    """
    if past is None:
        return LazyCache(plan)
    if isinstance(past, LazyCache):
        if past.plan not in known:
            raise ValueError(
                f"{CACHE_NAME}: expected a cache of this lazyllm_ext.apply, got another one's"
            )
        past.check_usable()
        return past
    got = type(past).__name__
    if type(past) is DynamicCache and not past.offloading:
        held = past.get_seq_length()
        if held == 0:
            return LazyCache(plan)
        got = f"a DynamicCache that holds {held} tokens computed without LazyLLM"
    raise refusal(CACHE_NAME, "a LazyCache or an empty DynamicCache", got)


def run(
    decoder: LazyDecoder,
    max_tokens: int | None,
    cache: LazyCache,
    call: Mapping[str, Any],
    logits_to_keep: int | Tensor,
) -> Tensor:
    """One call of a model: new tokens into the cache, logits [B, logits_to_keep, vocab] out.

    Arguments and errors are those of `pack_inputs`.
    """
    started = perf_counter()
    inputs = pack_inputs(decoder, max_tokens, cache, call, logits_to_keep)
    padding = inputs.padding
    state = _state_for(inputs, decoder, cache)
    turn = cache.turn
    if turn is None or (padding.columns > 1 and not cache.generating):
        turn = Turn.begun(started, state)
    begins = turn is not cache.turn
    cache.running = True  # until the step is done: an interrupted one leaves the cache useless
    cache.state = state
    with watched(cache.progress if begins else None, decoder, sum(padding.counts)):
        logits = decoder.step(inputs.hidden, inputs.positions, padding.counts, state, inputs.kept)
    cache.columns += padding.columns
    cache.absent = padding.absent
    cache.mask_follows = False
    if begins:
        # What generate wants logits of beside the prompt's last token is a draft.
        turn.end_prompt(state, drafted=inputs.kept - 1 if cache.generating else 0)
        cache.turn = turn
    else:
        turn.end_step()
    cache.running = False
    return padding.unpack(logits, inputs.kept)


def _state_for(inputs: PackedInputs, decoder: LazyDecoder, cache: LazyCache) -> LazyState:
    hidden, state = inputs.hidden, cache.state
    if state is None:
        return decoder.new_state(inputs.padding.batch, hidden)
    keys = state.keys[0]
    if keys.dtype != hidden.dtype or keys.device != hidden.device:
        raise ValueError(
            f"{CACHE_NAME}: expected {hidden.dtype} on {hidden.device}, "
            f"got {keys.dtype} on {keys.device}"
        )
    return state
