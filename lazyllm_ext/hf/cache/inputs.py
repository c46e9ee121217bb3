"""The arguments of a call of a model: checked against its cache, and packed for the decoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.decoder.modules import is_untouched
from lazyllm_ext.errors import NotSupportedError, refusal
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .cache import LazyCache
from .padding import Padding, find_padding


@dataclass(frozen=True)
class PackedInputs:
    """The new tokens of a call, sequence after sequence, without the columns that hold none."""

    hidden: Tensor  # [rows, hidden], their embeddings
    positions: Tensor  # [rows] int64
    padding: Padding  # where they stand in the call's inputs
    kept: int  # for how many of the last new tokens logits are asked


def pack_inputs(
    decoder: LazyDecoder,
    max_tokens: int | None,
    cache: LazyCache,
    call: Mapping[str, Any],
    logits_to_keep: int | Tensor,
) -> PackedInputs:
    """All that a call says of its tokens; what does not fit is refused before any work.

    Args:
        max_tokens: longest prompt with all that came before it; None for no limit.
        call: `input_ids` or `inputs_embeds`, `attention_mask` and `position_ids`, where given.

    Raises:
        ValueError: arguments that do not fit each other or the cache; NotSupportedError for what
            transformers would run.
    """
    weight: Any = decoder.embed.weight
    name, given = _the_input(call.get("input_ids"), call.get("inputs_embeds"), weight)
    _check_input(name, given, cache, weight.device)
    batch, columns = given.shape[:2]
    padding = find_padding(call.get("attention_mask"), batch, columns, cache, weight.device)
    kept = _logits_kept(logits_to_keep, padding, decoder)
    position_ids = call.get("position_ids")
    if padding.absent is not None and call.get("attention_mask") is not None:
        _check_padded(padding.absent, position_ids is not None, decoder)
    held = [0] * batch if cache.state is None else cache.state.host_length
    longest = max(old + new for old, new in zip(held, padding.counts, strict=True))
    positions = _positions(position_ids, padding, cache, held, weight.device)
    if decoder.learns_positions:
        if position_ids is not None and int(positions.min()) < 0:
            raise ValueError(
                f"position_ids: expected at least 0, since the model learned its positions, got "
                f"{int(positions.min())}"
            )
        table: Any = decoder.position_embed
        past_end = longest if position_ids is None else int(positions.max()) + 1
        if past_end > table.num_embeddings:  # transformers cannot go on either
            raise ValueError(
                f"{name}: expected at most {table.num_embeddings} tokens, since the model learned "
                f"so many positions, got {past_end}"
            )
    if columns > 1 and max_tokens is not None and longest > max_tokens:
        raise refusal(
            "input_ids", f"at most {max_tokens} tokens (config.max_position_embeddings)", longest
        )
    if name == "input_ids" and not is_untouched(decoder.embed):
        given, name = decoder.embed_tokens(given), "inputs_embeds"  # a hook sees the whole batch
    rows = padding.pack(given)
    hidden = decoder.embed_tokens(rows) if name == "input_ids" else rows
    return PackedInputs(hidden, positions, padding, kept)


def _the_input(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, weight: Tensor
) -> tuple[str, Tensor]:
    """The one input that is given, by name; `weight` [vocab, hidden] is that of the embedding."""
    if input_ids is not None and inputs_embeds is not None:
        raise ValueError("input_ids: expected one of input_ids and inputs_embeds, got both")
    if inputs_embeds is not None:
        hidden, dtype = weight.size(1), weight.dtype
        fits = isinstance(inputs_embeds, Tensor) and inputs_embeds.dim() == 3
        words = (
            f"inputs_embeds: expected [batch, columns, {hidden}] of {dtype}, "
            f"got {_shown(inputs_embeds)}"
        )
        if not fits or inputs_embeds.size(2) != hidden:
            raise ValueError(words)
        if (
            inputs_embeds.dtype != dtype
        ):  # transformers computes in whatever dtype comes out of both
            raise NotSupportedError(words)
        return "inputs_embeds", inputs_embeds
    if input_ids is None:
        raise ValueError("input_ids: expected one of input_ids and inputs_embeds, got none")
    check_ids("input_ids", input_ids)
    return "input_ids", input_ids


def check_ids(name: str, ids: Any) -> None:
    """Raises ValueError for anything but a table of token ids."""
    fits = isinstance(ids, Tensor) and ids.dim() == 2
    if not fits or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: expected [batch, columns] of int64, got {_shown(ids)}")


def _shown(given: Any) -> str:
    if not isinstance(given, Tensor):
        return f"{type(given).__name__}, no tensor"
    return f"{list(given.shape)} of {given.dtype}"


def _check_input(name: str, given: Tensor, cache: LazyCache, device: torch.device) -> None:
    """The device, the number of sequences, and that there is something to compute."""
    if given.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {given.device}")
    if torch.is_autocast_enabled(device.type):
        raise NotSupportedError(
            "torch.autocast: not supported; load the model in the dtype it shall compute in"
        )
    batch, columns = given.shape[:2]
    if batch == 0 or columns == 0:
        raise ValueError(f"{name}: expected at least one token, got shape {list(given.shape)}")
    held = cache.batch_size
    if cache.state is None or held == batch:
        return
    hint = ""
    if batch > held and batch % held == 0:
        hint = (
            f"; for beams or several answers to each, call {CACHE_NAME}.batch_repeat_interleave("
            f"{batch // held}) before"
        )
    raise ValueError(f"{name}: expected {held} sequences as in {CACHE_NAME}, got {batch}{hint}")


def _check_padded(absent: Tensor, has_positions: bool, decoder: LazyDecoder) -> None:
    """Raises NotSupportedError where transformers would count columns without a token.

    Args:
        absent: [B, all columns so far] bool, those without.
    """
    present = ~absent
    before = present.cumsum(1) > 0  # from the first token on
    after = present.flip(1).cumsum(1).flip(1) > 0  # up to the last
    between = bool((absent & before & after).any())
    if between and any(layer.window for layer in decoder.layers):
        raise refusal(
            "attention_mask",
            "no padding between tokens, since transformers counts it into sliding windows",
            "some",
        )
    learned = decoder.learns_positions
    if not has_positions and (between or (learned and bool((absent & after).any()))):
        raise refusal(
            "position_ids",
            f"those of all columns where padding stands {'before' if learned else 'between'} "
            "tokens, since transformers counts padding too",
            "none",
        )


def _logits_kept(asked: int | Tensor, padding: Padding, decoder: LazyDecoder) -> int:
    """For how many of the last new tokens logits are computed."""
    check_number_of_logits(asked)
    columns = padding.columns
    kept = min(int(asked) or columns, columns)
    if padding.place is not None and kept < columns:
        _warn_of_right_padding(padding)
    if not decoder.boundaries:
        return kept
    if asked == 0 and columns > 1:
        raise refusal(
            "logits_to_keep",
            "at least 1, since the schedule drops tokens before the last layer",
            f"0 (all {columns}); generate asks for 1",
        )
    # The same number of last tokens is protected in all sequences.
    shortest = min(padding.counts)
    if kept > max(shortest, decoder.window):
        raise refusal(
            "logits_to_keep",
            f"at most {max(shortest, decoder.window)}, since one sequence has {shortest} new "
            "tokens and the schedule drops tokens",
            kept,
        )
    return kept


def check_number_of_logits(asked: Any) -> None:
    """Raises NotSupportedError for columns that are named; transformers takes them."""
    if not isinstance(asked, int) or asked < 0:
        got = asked if isinstance(asked, int) else type(asked).__name__
        raise refusal("logits_to_keep", "a number of last tokens", got)


def _warn_of_right_padding(padding: Padding) -> None:
    """Once, as Python's default filter has it: the text and the place are always the same."""
    absent: Any = padding.absent  # there, since some columns hold no token
    if bool(absent[:, -1].any()):
        warnings.warn(
            "attention_mask: padding on the right: LazyLLM takes a sequence's last logits at its "
            "last token, as if it were alone, and transformers at the last column; pad on the left",
            UserWarning,
            stacklevel=2,
        )


def _positions(
    position_ids: Tensor | None,
    padding: Padding,
    cache: LazyCache,
    held: list[int],
    device: torch.device,
) -> Tensor:
    """Positions [rows] int64: those given, else each token's index in its own sequence."""
    if position_ids is not None:
        given = _given_positions(position_ids, padding, cache.columns)
        return padding.pack(given.to(device)).long()
    if cache.state is not None and padding.columns == 1:
        return cache.state.length.clone()  # on the device already
    spans = zip(held, padding.counts, strict=True)
    return torch.cat([torch.arange(old, old + new, device=device) for old, new in spans])


def _given_positions(position_ids: Tensor, padding: Padding, before: int) -> Tensor:
    """[B, columns] of the new columns; those of `before` earlier ones may be there, too."""
    if not isinstance(position_ids, Tensor) or position_ids.is_floating_point():
        got = getattr(position_ids, "dtype", type(position_ids).__name__)
        raise refusal("position_ids", "a tensor of int64", got)
    batch, columns = padding.batch, padding.columns
    if position_ids.dim() != 2 or position_ids.size(0) not in (1, batch):
        raise ValueError(
            f"position_ids: expected shape [{batch}, {columns}], got {list(position_ids.shape)}"
        )
    if position_ids.size(1) == before + columns:
        position_ids = position_ids[:, before:]
    if position_ids.size(1) != columns:
        raise ValueError(f"position_ids: expected {columns} columns, got {position_ids.size(1)}")
    return position_ids.expand(batch, -1)
