"""Builds the arguments of each operator for the table of cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
Arguments = dict[str, Any]
NAN = float("nan")


def attention_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    rows: list[int],
    keys: list[int],
    heads: tuple[int, int],
    dim: int,
    places: str = "last",
    gaps: int = 2,
    first_key: int = 0,
    unused_rows: int = 0,
    unused_keys: int = 0,
    layout: str = "plain",
    value_layout: str | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Arguments:
    """Sequences whose keys are a part of their tokens, one of `gaps` on average.

    places: which tokens the rows are: the "last" or "first" keys, keys "spread" over the sequence,
    the same "shuffled", or tokens "anywhere", with a key or without.
    value_layout: of the values, where it is another one than that of queries and keys.
    """
    num_heads, num_kv_heads = heads
    query_index, key_index = [], []
    for num_rows, num_keys in zip(rows, keys, strict=True):
        mine, kept = _row_and_key_tokens(generator, num_rows, num_keys, places, gaps, first_key)
        query_index.append(with_unused(generator, mine, unused_rows))
        key_index.append(with_unused(generator, kept, unused_keys))

    total_rows, total_keys = sum(map(len, query_index)), sum(map(len, key_index))
    packed_index = torch.cat(key_index)
    spare = 3
    key_slots = torch.randperm(total_keys + spare, generator=generator)[:total_keys]
    key_slots = torch.where(packed_index >= 0, key_slots, -1)
    stored = total_keys + spare
    arguments = {
        "query": floats(generator, (total_rows, num_heads, dim), dtype, layout),
        "query_index": torch.cat(query_index),
        "query_offsets": offsets(map(len, query_index)),
        "key_store": floats(generator, (stored, num_kv_heads, dim), dtype, layout),
        "value_store": floats(
            generator, (stored, num_kv_heads, dim), dtype, value_layout or layout
        ),
        "key_slots": key_slots,
        "key_index": packed_index,
        "key_offsets": offsets(map(len, key_index)),
        "scale": dim**-0.5 if scale is None else scale,
        "window": window,
        "softcap": softcap,
    }
    in_use = torch.zeros(stored, dtype=torch.bool)
    in_use[key_slots[key_slots >= 0]] = True
    arguments["key_store"][~in_use] = NAN
    arguments["value_store"][~in_use] = NAN
    return arguments


def _row_and_key_tokens(
    generator: Generator, num_rows: int, num_keys: int, places: str, gaps: int, first_key: int
) -> tuple[Tensor, Tensor]:
    """The token indices of one sequence's rows and keys."""
    tokens = first_key + max(num_keys * gaps, num_rows)
    kept = torch.randperm(tokens - first_key, generator=generator)[:num_keys].sort().values
    kept = kept + first_key
    # Rows beyond the number of keys stand behind the last key.
    mine = torch.cat([kept, tokens + torch.arange(max(0, num_rows - num_keys))])
    if places == "anywhere":
        mine = torch.arange(tokens)
    if places in ("spread", "shuffled", "anywhere"):
        mine = mine[torch.randperm(mine.numel(), generator=generator)[:num_rows]]
        mine = mine if places == "shuffled" else mine.sort().values
    mine = mine[:num_rows] if places == "first" else mine[mine.numel() - num_rows :]
    return mine, kept


def importance_arguments(generator: Generator, dtype: torch.dtype, **options: Any) -> Arguments:
    arguments = attention_arguments(generator, dtype, **options)
    del arguments["value_store"], arguments["window"]
    return arguments


def _bad_scores(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    scores = torch.rand(shape, generator=generator)
    kinds = torch.randint(0, 6, shape, generator=generator)
    for kind, value in enumerate((NAN, -float("inf"), float("inf"))):
        scores[kinds == kind] = value
    return scores


def _some(generator: Generator, shape: tuple[int, ...], values: list[float]) -> Tensor:
    return torch.tensor(values)[torch.randint(0, len(values), shape, generator=generator)]


SCORES: dict[str, Callable[[Generator, tuple[int, ...]], Tensor]] = {
    "random": lambda generator, shape: torch.rand(shape, generator=generator),
    "ties": lambda generator, shape: _some(generator, shape, [0.0, 0.25, 0.5, 0.75]),
    "equal": lambda generator, shape: torch.full(shape, 0.125),
    "zeros": lambda generator, shape: _some(generator, shape, [0.0, -0.0]),
    "negative": lambda generator, shape: torch.randn(shape, generator=generator),
    "subnormal": lambda generator, shape: _some(generator, shape, [0.0, 1e-44, 1e-42, 1e-40]),
    "bad": _bad_scores,
    "nan": lambda generator, shape: torch.full(shape, NAN),
}


def select_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    lengths: list[int],
    candidates: list[int],
    targets: list[int],
    scores: str = "random",
    pool: int = 1,
    protect_first: int = 0,
    protect_last: int = 0,
    cover: bool = True,
    unused: int = 0,
    unused_first: int = 0,
    unused_last: int = 0,
    room: int = 0,
    layout: str = "plain",
) -> Arguments:
    """A part of each sequence's tokens as candidates, and just enough room, or `room` more.

    unused: places that are -1 among the candidates; unused_first, unused_last: before and behind.
    """
    shape = (len(lengths), max(lengths) + 2)
    importance = SCORES[scores](generator, shape)
    for row, length in zip(importance, lengths, strict=True):
        row[length:] = 1e9  # behind the sequence's end: never to be read
    chosen_from, rooms = [], []
    for length, count, target in zip(lengths, candidates, targets, strict=True):
        mine = torch.randperm(length, generator=generator)[:count].sort().values
        protected = int(((mine < protect_first) | (mine >= length - protect_last)).sum())
        wanted = max(1, protected, target) if cover else target
        rooms.append(min(count, wanted if target >= 0 else count) + room)
        mixed = with_unused(generator, mine, unused)
        chosen_from.append(nn.functional.pad(mixed, (unused_first, unused_last), value=-1))
    return {
        "importance": relaid(importance, layout),
        "lengths": torch.tensor(lengths),
        "candidates": torch.cat(chosen_from),
        "candidate_offsets": offsets(map(len, chosen_from)),
        "targets": torch.tensor(targets),
        "out_offsets": offsets(rooms),
        "out_size": sum(rooms),
        "pool": pool,
        "protect_first": protect_first,
        "protect_last": protect_last,
        "cover_protected": cover,
    }


def gather_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    stored: int,
    rows: int,
    shape: tuple[int, ...],
    unused: int = 0,
    repeated: bool = False,
    layout: str = "plain",
) -> Arguments:
    if repeated:
        index = torch.randint(0, stored, (rows,), generator=generator)
    else:
        index = torch.randperm(stored, generator=generator)[: rows - unused]
    return {
        "source": row_wise(generator, (stored, *shape), dtype, layout),
        "index": with_unused(generator, index, unused),
    }


def scatter_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    layout: str = "plain",
    rows_layout: str | None = None,
    **options: Any,
) -> Arguments:
    """rows_layout: of the new rows, where it is another one than the destination's."""
    gather = gather_arguments(generator, dtype, layout=layout, **options)
    source, index = gather["source"], gather["index"]
    shape = (index.numel(), *source.shape[1:])
    rows = row_wise(generator, shape, dtype, rows_layout or layout)
    return {"destination": source, "index": index, "rows": rows}


def append_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    stored: int,
    tokens: int,
    kv_heads: int,
    dim: int,
    unused: int = 0,
    layout: str = "plain",
    rows_layout: str | None = None,
    value_layout: str | None = None,
) -> Arguments:
    """layout: of all; rows_layout: of the new rows, value_layout: of a store's and new values."""
    slots = torch.randperm(stored, generator=generator)[: tokens - unused]
    store, new = (stored, kv_heads, dim), (tokens, kv_heads, dim)
    return {
        "key_store": floats(generator, store, dtype, layout),
        "value_store": floats(generator, store, dtype, value_layout or layout),
        "slots": with_unused(generator, slots, unused),
        "key": floats(generator, new, dtype, rows_layout or layout),
        "value": floats(generator, new, dtype, value_layout or rows_layout or layout),
    }


def linear_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    rows: int,
    features: tuple[int, int],
    bias: bool = True,
    layout: str = "plain",
) -> Arguments:
    """features: of x, and of the result."""
    into, out = features
    return {
        "x": floats(generator, (rows, into), dtype, layout),
        "weight": floats(generator, (out, into), dtype, layout),
        "bias": floats(generator, (out,), dtype) if bias else None,
    }


def rotate_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    rows: int,
    heads: int,
    dim: int,
    half: int,
    interleaved: bool = False,
    layout: str = "plain",
) -> Arguments:
    """half: pairs that are rotated; the rest of the `dim` components is copied."""
    angle = 9 * torch.randn((rows, half), generator=generator)
    return {
        "x": floats(generator, (rows, heads, dim), dtype, layout),
        "cos": relaid(angle.cos().to(dtype), layout),
        "sin": relaid(angle.sin().to(dtype), layout),
        "interleaved": interleaved,
    }


def gated_activation_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    rows: int,
    dim: int,
    activation: str = "silu",
    layout: str = "plain",
    up_layout: str | None = None,
) -> Arguments:
    """up_layout: where it is another one than that of the gate."""
    return {
        "gate": floats(generator, (rows, dim), dtype, layout).mul_(4),
        "up": floats(generator, (rows, dim), dtype, up_layout or layout),
        "activation": activation,
    }


def rms_norm_arguments(
    generator: Generator,
    dtype: torch.dtype,
    *,
    rows: int,
    dim: int,
    offset: float = 0.0,
    layout: str = "plain",
) -> Arguments:
    """offset: added to the weight."""
    return {
        "x": floats(generator, (rows, dim), dtype, layout),
        "weight": floats(generator, (dim,), dtype, "plain"),
        "eps": 1e-5,
        "offset": offset,
    }


BUILDERS: dict[str, Callable[..., Arguments]] = {
    "token_importance": importance_arguments,
    "select_tokens": select_arguments,
    "aux_gather": gather_arguments,
    "aux_scatter_": scatter_arguments,
    "kv_append_": append_arguments,
    "lazy_attention": attention_arguments,
    "linear": linear_arguments,
    "gated_activation": gated_activation_arguments,
    "rms_norm": rms_norm_arguments,
    "rotate": rotate_arguments,
}


def floats(
    generator: Generator, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "plain"
) -> Tensor:
    return relaid(torch.randn(shape, generator=generator).to(dtype), layout)


def row_wise(
    generator: Generator, shape: tuple[int, ...], dtype: torch.dtype, layout: str
) -> Tensor:
    """Rows that are contiguous, though far apart or at an odd address."""
    if dtype == torch.int64:
        values = torch.randint(-(2**62), 2**62, shape, generator=generator)
    else:
        values = torch.randn(shape, generator=generator).to(dtype)
    if layout == "plain":
        return values
    before, after = (0, 8) if layout == "strided" else (1, 2)
    whole = values.new_full((shape[0], before + shape[1] + after), 77)
    view = whole[:, before : before + shape[1]]
    view.copy_(values)
    return view


def relaid(values: Tensor, layout: str) -> Tensor:
    """The values as a view of a larger tensor, its last dimension with stride 1.

    "strided": dims 0 and 1 transposed in memory, every second place of dim 0 left out;
    "misaligned": rows and heads of an odd length, from the second element on.
    """
    if layout == "plain":
        return values
    if layout == "strided" and values.dim() == 3:
        rows, heads, dim = values.shape
        view = values.new_full((heads, 2 * rows, dim), NAN).transpose(0, 1)[::2]
    else:
        *outer, last = values.shape
        odd = last + 2 if last % 2 else last + 3
        view = values.new_full((*outer, odd), NAN)[..., 1 : 1 + last]
    view.copy_(values)
    return view


def with_unused(generator: Generator, index: Tensor, unused: int) -> Tensor:
    """The entries in their order, with -1 at `unused` places among them."""
    mixed = torch.full((index.numel() + unused,), -1)
    places = torch.randperm(mixed.numel(), generator=generator)[: index.numel()].sort().values
    mixed[places] = index
    return mixed


def offsets(counts: Any) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)])
