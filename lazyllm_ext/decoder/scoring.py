"""How much the last queries attend to each active token: all heads' mean, some heads', the most."""

import torch
from torch import Tensor

from .rows import Keys, Rows


def score(
    queries: Tensor,
    rows: Rows,
    key_store: Tensor,
    keys: Keys,
    scale: float,
    softcap: float,
    heads: list[int],
    over_heads: str,
) -> Tensor:
    """Attention probabilities, summed over the queries of each sequence.

    Args:
        queries: [R, H, D] of `rows`, the window's queries.
        key_store: [slots, Hkv, D].
        keys: the K active tokens.
        scale, softcap: of the layer's logits.
        heads: numbers of the query heads that score; empty for all of them.
        over_heads: "mean", or "max" for the largest of the heads' sums.

    Returns:
        [K] float32; 0 in unused places.
    """
    if len(heads) == 0 and over_heads == "mean":
        return torch.ops.lazyllm.token_importance(
            queries,
            rows.index,
            rows.offsets,
            key_store,
            keys.slots,
            keys.index,
            keys.offsets,
            scale,
            softcap,
        )
    of_heads = _of_heads(queries, rows, key_store, keys, scale, softcap, heads)
    return of_heads.amax(dim=0) if over_heads == "max" else of_heads.mean(dim=0)


def _of_heads(
    queries: Tensor,
    rows: Rows,
    key_store: Tensor,
    keys: Keys,
    scale: float,
    softcap: float,
    heads: list[int],
) -> Tensor:
    """The same for each head alone, [heads, K]: to the operator a head is a sequence of its own.

    The store's rows [slots, Hkv] are flattened, so that each holds the key of one head.
    """
    chosen = torch.arange(queries.size(1), device=queries.device)  # [heads] int64
    if len(heads) > 0:
        # In pieces: AOTInductor takes a constant of more than 8 numbers for one of the weights.
        parts: list[Tensor] = []
        for first in range(0, len(heads), 8):
            part = heads[first : first + 8]
            parts.append(torch.tensor(part, dtype=torch.int64, device=queries.device))
        chosen = torch.cat(parts)
    kv_heads, count = key_store.size(1), chosen.size(0)
    group = queries.size(1) // kv_heads
    kv_head = torch.div(chosen, group, rounding_mode="floor").unsqueeze(1)  # [heads, 1]
    slots = torch.where(keys.slots >= 0, keys.slots * kv_heads + kv_head, -1)  # [heads, K]
    scored = torch.ops.lazyllm.token_importance(
        queries.index_select(1, chosen).transpose(0, 1).reshape(-1, 1, queries.size(2)),
        rows.index.repeat(count),
        _repeated(rows.offsets, count, rows.index.size(0)),
        key_store.reshape(-1, 1, key_store.size(2)),
        slots.view(-1),
        keys.index.repeat(count),
        _repeated(keys.offsets, count, keys.slots.size(0)),
        scale,
        softcap,
    )
    return scored.view(count, -1)


def _repeated(offsets: Tensor, count: int, size: int) -> Tensor:
    """Offsets [B + 1] of `size` packed entries -> [count · B + 1] of `count` times as many."""
    before = torch.arange(count, dtype=torch.int64, device=offsets.device).unsqueeze(1) * size
    return torch.cat([offsets[:1], (before + offsets[1:]).view(-1)])


def add_carried(
    scored: Tensor, carried: Tensor, keys: Keys, importance: Tensor
) -> tuple[Tensor, Tensor]:
    """Add what earlier boundaries of this step scored.

    Args:
        scored: [K] of this boundary.
        carried: [B · cap] by token, of the boundaries before; empty before the first.
        keys: the K active tokens.
        importance: [B, cap], for the shape.

    Returns:
        Both together, by key and by token.
    """
    place = keys.place.clamp(min=0)
    if carried.size(0) > 0:
        before = carried.index_select(0, place)
        scored = scored + torch.where(keys.slots >= 0, before, 0.0)
    by_token = torch.zeros([importance.numel()], dtype=torch.float32, device=scored.device)
    return scored, by_token.index_add_(0, place, scored)
