"""The forward that replaces a model's own: padded inputs in, one decoder step, logits out."""

from __future__ import annotations

from collections.abc import Container
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.models.refuse import refuse_context
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.state import revived

from .cache import LazyCache, Plan
from .inputs import Rows, find_positions, find_rows
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
    if type(past) is DynamicCache and not past.offloading:
        held = past.get_seq_length()
        if held == 0:
            return LazyCache(plan)
        raise NotSupportedError(
            f"{CACHE_NAME}: expected a LazyCache or an empty DynamicCache, got a DynamicCache "
            f"that holds {held} tokens computed without LazyLLM"
        )
    raise NotSupportedError(
        f"{CACHE_NAME}: expected a LazyCache or an empty DynamicCache, got {type(past).__name__}"
    )


def run(
    decoder: LazyDecoder,
    max_tokens: int | None,
    cache: LazyCache,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    logits_to_keep: int | Tensor,
) -> Tensor:
    """One call of a model: new tokens into the cache, logits [B, logits_to_keep, vocab] out.

    Args:
        max_tokens: longest prompt with all that came before it; None for no limit.

    Raises:
        ValueError: before anything is computed, for arguments that do not fit; NotSupportedError
            for what transformers would run.
    """
    started = perf_counter()
    weight: Any = decoder.embed.weight
    name, tensor = _the_input(input_ids, inputs_embeds, weight)
    refuse_context(name, tensor, weight.device)
    batch, columns = tensor.size(0), tensor.size(1)
    if batch == 0 or columns == 0:
        raise ValueError(f"{name}: expected at least one token, got shape {list(tensor.shape)}")
    if cache.state is not None and cache.batch_size != batch:
        raise ValueError(
            f"{name}: expected {cache.batch_size} sequences as in {CACHE_NAME}, got {batch}"
            + _hint_at_beams(batch, cache.batch_size)
        )
    rows = find_rows(attention_mask, batch, columns, cache, weight.device)
    kept = _logits_kept(logits_to_keep, rows, decoder)
    positions = find_positions(position_ids, rows, cache, weight.device)
    longest = _longest(rows, cache)
    if decoder.learns_positions:
        table: Any = decoder.position_embed
        past_end = longest if position_ids is None else int(positions.max()) + 1
        if past_end > table.num_embeddings:  # transformers cannot go on either
            raise ValueError(
                f"{name}: expected at most {table.num_embeddings} tokens, since the model learned "
                f"so many positions, got {past_end}"
            )
    if columns > 1 and max_tokens is not None and longest > max_tokens:
        raise NotSupportedError(
            f"input_ids: expected at most {max_tokens} tokens (config.max_position_embeddings), "
            f"got {longest}"
        )

    hidden = rows.pack(tensor) if input_ids is None else decoder.embed_tokens(rows.pack(tensor))
    state = cache.state
    if state is None:
        state = decoder.new_state(batch, hidden)
    elif state.keys[0].dtype != hidden.dtype or state.keys[0].device != hidden.device:
        raise ValueError(
            f"{CACHE_NAME}: expected {hidden.dtype} on {hidden.device}, "
            f"got {state.keys[0].dtype} on {state.keys[0].device}"
        )
    turn = cache.turn
    if turn is None or (columns > 1 and not cache.generating):
        turn = Turn(
            started=started,
            cached_tokens=list(state.host_length),
            revived=revived(state),
        )
    cache.running = True  # until the step is done: an interrupted one leaves the cache useless
    cache.state = state
    progress = cache.progress if turn is not cache.turn else None
    with watched(progress, decoder, sum(rows.counts)):
        logits = decoder.step(hidden, positions, rows.counts, state, kept)
    cache.columns += columns
    cache.absent = rows.absent
    cache.mask_follows = False
    if turn is cache.turn:
        turn.end_step()
    else:
        # What generate wants logits of beside the prompt's last token is a draft.
        turn.end_prompt(state, drafted=kept - 1 if cache.generating else 0)
        cache.turn = turn
    cache.running = False
    return rows.unpack(logits, kept)


def _the_input(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, weight: Tensor
) -> tuple[str, Tensor]:
    """The one input that is given, by name; `weight` [vocab, hidden] is that of the embedding."""
    if input_ids is not None and inputs_embeds is not None:
        raise ValueError("input_ids: expected one of input_ids and inputs_embeds, got both")
    if inputs_embeds is not None:
        hidden, dtype = weight.size(1), weight.dtype
        fits = isinstance(inputs_embeds, Tensor) and inputs_embeds.dim() == 3
        if not fits or inputs_embeds.size(2) != hidden or inputs_embeds.dtype != dtype:
            raise ValueError(
                f"inputs_embeds: expected [batch, columns, {hidden}] of {dtype}, "
                f"got {_shown(inputs_embeds)}"
            )
        return "inputs_embeds", inputs_embeds
    if input_ids is None:
        raise ValueError("input_ids: expected one of input_ids and inputs_embeds, got none")
    fits = isinstance(input_ids, Tensor) and input_ids.dim() == 2
    if not fits or input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids: expected [batch, columns] of int64, got {_shown(input_ids)}")
    return "input_ids", input_ids


def _shown(given: Any) -> str:
    if not isinstance(given, Tensor):
        return f"{type(given).__name__}, no tensor"
    return f"{list(given.shape)} of {given.dtype}"


def _logits_kept(asked: int | Tensor, rows: Rows, decoder: LazyDecoder) -> int:
    """For how many of the last new tokens logits are computed."""
    if not isinstance(asked, int):
        raise NotSupportedError(
            f"logits_to_keep: expected a number of last tokens, got {type(asked).__name__}"
        )
    if asked < 0:
        raise ValueError(f"logits_to_keep: expected a number of last tokens, got {asked}")
    kept = min(asked or rows.columns, rows.columns)
    if not decoder.boundaries:
        return kept
    if asked == 0 and rows.columns > 1:
        raise NotSupportedError(
            "logits_to_keep: expected at least 1, since the schedule drops tokens before the last "
            f"layer, got 0 (all {rows.columns}); generate asks for 1"
        )
    # The same number of last tokens is protected in all sequences.
    shortest = min(rows.counts)
    if kept > max(shortest, decoder.window):
        raise NotSupportedError(
            f"logits_to_keep: expected at most {max(shortest, decoder.window)}, since one sequence "
            f"has {shortest} new tokens and the schedule drops tokens, got {kept}"
        )
    return kept


def _longest(rows: Rows, cache: LazyCache) -> int:
    """Tokens of the longest sequence, those before and the new ones."""
    before = [0] * rows.batch if cache.state is None else cache.state.host_length
    return max(old + new for old, new in zip(before, rows.counts, strict=True))


def _hint_at_beams(wanted: int, held: int) -> str:
    if wanted <= held or wanted % held:
        return ""
    return (
        f"; for beams or several answers to each, call {CACHE_NAME}.batch_repeat_interleave("
        f"{wanted // held}) before"
    )


def output(logits: Tensor, cache: LazyCache | None, as_dict: bool) -> Any:
    """What a transformers model returns."""
    fields: dict[str, Any] = {"logits": logits, CACHE_NAME: cache}
    result = CausalLMOutputWithPast(**fields)
    return result if as_dict else result.to_tuple()
