"""How much the last queries attend to each active token: all heads' mean, some heads', the most."""

import torch
from torch import Tensor

from lazyllm_ext.state import LazyState

from .rows import Keys, Rows, Step
from .rules import BoundaryRule


def score(
    queries: Tensor,
    rows: Rows,
    key_store: Tensor,
    keys: Keys,
    scale: float,
    softcap: float,
    rule: BoundaryRule,
) -> Tensor:
    """Attention probabilities, summed over the queries of each sequence.

    Args:
        queries: [R, H, D] of `rows`, the window's queries.
        key_store: [slots, Hkv, D].
        keys: the K active tokens.
        scale, softcap: of the layer's logits.
        rule: says which heads score, and whether their mean or the largest counts.

    Returns:
        [K] float32; 0 in unused places.
    """
    count = 1
    row_index, row_offsets = rows.index, rows.offsets
    slots, key_index, key_offsets = keys.slots, keys.index, keys.offsets
    if len(rule.heads) > 0 or rule.over_heads != "mean":
        # To the operator each head is then a sequence of its own. The store's rows [slots, Hkv] are
        # flattened, so that each holds the key of one head.
        heads = _scoring_heads(rule, queries)  # [heads] int64
        count, kv_heads = heads.size(0), key_store.size(1)
        group = queries.size(1) // kv_heads
        kv_head = torch.div(heads, group, rounding_mode="floor").unsqueeze(1)  # [heads, 1]
        slots = torch.where(slots >= 0, slots * kv_heads + kv_head, -1).view(-1)  # [heads · K]
        row_offsets = _repeated(row_offsets, count, row_index.size(0))
        key_offsets = _repeated(key_offsets, count, key_index.size(0))
        row_index, key_index = row_index.repeat(count), key_index.repeat(count)
        queries = queries.index_select(1, heads).transpose(0, 1).reshape(-1, 1, queries.size(2))
        key_store = key_store.reshape(-1, 1, key_store.size(2))
    scored: Tensor = torch.ops.lazyllm.token_importance(
        queries, row_index, row_offsets, key_store, slots, key_index, key_offsets, scale, softcap
    )
    if count == 1:
        return scored
    of_heads = scored.view(count, -1)
    return of_heads.amax(dim=0) if rule.over_heads == "max" else of_heads.mean(dim=0)


def _scoring_heads(rule: BoundaryRule, queries: Tensor) -> Tensor:
    """Numbers of the query heads that score, [heads] int64."""
    if len(rule.heads) == 0:
        return torch.arange(queries.size(1), device=queries.device)
    # In pieces: AOTInductor takes a constant of more than 8 numbers for one of the weights.
    parts: list[Tensor] = []
    for first in range(0, len(rule.heads), 8):
        part = rule.heads[first : first + 8]
        parts.append(torch.tensor(part, dtype=torch.int64, device=queries.device))
    return torch.cat(parts)


def _repeated(offsets: Tensor, count: int, size: int) -> Tensor:
    """Offsets [B + 1] of `size` packed entries -> [count · B + 1] of `count` times as many."""
    before = torch.arange(count, dtype=torch.int64, device=offsets.device).unsqueeze(1) * size
    return torch.cat([offsets[:1], (before + offsets[1:]).view(-1)])


def add_carried_(carried: Tensor, scored: Tensor, keys: Keys) -> Tensor:
    """Add what earlier boundaries of this step scored, and remember both together.

    Args:
        carried: [B · cap] by token, of the boundaries before.
        scored: [K] of this boundary.
        keys: the K active tokens.

    Returns:
        Both together, [K].
    """
    place = keys.place.clamp(min=0)
    before = torch.where(keys.slots >= 0, carried.index_select(0, place), 0.0)
    both = scored + before
    carried.zero_().index_add_(0, place, both)
    return both


def update_importance_(
    state: LazyState, number: int, step: Step, keys: Keys, scored: Tensor, window: int
) -> None:
    """I = decay · I + Σ p / window; `scored` [K] float32 is Σ p of this step's window queries."""
    importance = state.importance[number]  # [B, cap]
    if step.forgets:  # 0 · NaN is NaN: what counts for nothing is put to 0, not multiplied
        importance.copy_(torch.where(step.decay > 0, importance * step.decay, 0.0))
    else:
        importance.mul_(step.decay)
    importance.view(-1).index_add_(0, keys.place.clamp(min=0), scored, alpha=1.0 / window)
