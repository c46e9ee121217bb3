"""Operators on the tokens of sequences: score them, select among them, attend over them."""

from __future__ import annotations

import torch
from torch import Tensor

from .calling import call, check, check_type


def token_importance(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor | None,
    key_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor | None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    r"""How much attention a few queries pay to each stored key (arXiv 2407.14057, equation 1).

    .. math::

        I_k = \sum_i \frac{1}{H} \sum_h
            \operatorname{softmax}_k(\mathrm{cap}(s\, q_{ih} \cdot K_h))

    over the queries i of the key's sequence, each of which sees the keys with
    ``key_index <= query_index[i]``. The paper has one query, the last token's; divide by the number
    of queries for their mean.

    Args:
        query: [R, H, D] float, the queries that score, packed by `query_offsets`.
        query_index: [R] int64, token index of each query; an unused one (-1) adds nothing.
        query_offsets: [B + 1] int64, or None for one sequence.
        key_store: [slots, Hkv, D] float; H is a multiple of Hkv, query head h reads head
            h // (H / Hkv).
        key_slots: [K] int64, row of `key_store` of each key, packed by `key_offsets`.
        key_index: [K] int64, token index of each key, ascending in a sequence.
        key_offsets: [B + 1] int64, or None for one sequence.
        scale: factor of the logits; None is 1 / sqrt(D).
        softcap: c > 0 replaces a logit x by c * tanh(x / c); 0 leaves it.

    Returns:
        float32 [K]: 0 for keys that no query sees and for unused ones. A NaN or +inf logit takes no
        part in its softmax and makes only that key's result NaN; a query head that holds a NaN adds
        nothing.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    op = "token_importance"
    query_offsets = _offsets_or_one(op, "query", query, query_offsets)
    key_offsets = _offsets_or_one(op, "key_slots", key_slots, key_offsets)
    scale = _scale_or_default(op, query, scale)
    return call(
        op, query, query_index, query_offsets, key_store, key_slots, key_index, key_offsets,
        scale, softcap,
    )  # fmt: skip


def select_tokens(
    importance: Tensor,
    lengths: Tensor,
    candidates: Tensor | None = None,
    candidate_offsets: Tensor | None = None,
    targets: Tensor | None = None,
    out_offsets: Tensor | None = None,
    out_size: int | None = None,
    pool: int = 1,
    protect_first: int = 0,
    protect_last: int = 0,
    cover_protected: bool = True,
    *,
    keep: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens that go on after a boundary (arXiv 2407.14057, section 3.2), ascending.

    A candidate's score is the maximum of the importance of the tokens at most ``pool // 2`` away,
    of all tokens 0 … n - 1, NaN counting as -inf (pooling: arXiv 2404.14469; the paper has pool 1).
    Candidates among the first `protect_first` and the last `protect_last` tokens are taken first,
    then the best scores, equal ones by the lower index; the choice is the same on every device. A
    token that is not protected and scores -inf is never taken.

    How many are taken is ``min(candidates, max(1, protected, target))``, or without
    `cover_protected` ``min(candidates, target)``. The paper's percentile k of what is left is
    ``keep = previous keep * (1 - k / 100)``.

    Args:
        importance: [B, C] float32, one value for each token of a sequence so far.
        lengths: [B] int64, n of each sequence, at most C.
        candidates: [Kc] int64, tokens to choose from, ascending in a sequence; None is all tokens.
        candidate_offsets: [B + 1] int64, or None for one sequence.
        targets: [B] int64, how many tokens to take; below 0: all candidates, whatever their score.
        out_offsets: [B + 1] int64, where each sequence's result begins; None leaves room for all
            candidates.
        out_size: length of the result, ``out_offsets[B]``; None with `out_offsets` reads it from
            the device.
        pool: odd number of tokens pooled.
        protect_first, protect_last: number of protected tokens at the beginning and at the end.
        cover_protected: take at least the protected tokens, and at least one.
        keep: in place of `targets`, a part of the n tokens in (0, 1]: ``ceil(keep * n - 1e-9)``.

    Returns:
        int64 [out_size]: each sequence's tokens from its out offset on, -1 in unused places; and
        int64 [B]: how many there are.

    Raises:
        TypeError, ValueError: an argument is wrong, or on the CPU, more tokens are to be taken than
            there is room for (CUDA takes the best that fit).
    """
    op = "select_tokens"
    if candidates is None:
        candidates, candidate_offsets = _all_tokens(op, importance, lengths, candidate_offsets)
    candidate_offsets = _offsets_or_one(op, "candidates", candidates, candidate_offsets)
    targets = _targets_or_keep(op, lengths, targets, keep)
    if out_size is None:
        out_size = _room(op, candidates, out_offsets)
    if out_offsets is None:
        out_offsets = candidate_offsets
    return call(
        op, importance, lengths, candidates, candidate_offsets, targets, out_offsets, out_size,
        pool, protect_first, protect_last, cover_protected,
    )  # fmt: skip


def lazy_attention(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor | None,
    key_store: Tensor,
    value_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor | None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    r"""Attention of each row over the stored keys of its sequence, causal by token index.

    .. math:: o_{rh} = \sum_k \operatorname{softmax}_k(\mathrm{cap}(s\, q_{rh} \cdot K_h))\, V_{kh}

    over the keys of the row's sequence with ``key_index <= query_index[r]`` and, with a window w,
    ``key_index > query_index[r] - w``. Tokens that were pruned have no entry among the keys, and
    rows may come in any order, so it serves prefill, decoding and revived tokens alike.

    Args:
        query, query_index, query_offsets: the rows, as in `token_importance`.
        key_store, value_store: [slots, Hkv, D], one dtype.
        window: number of tokens a row sees, itself included; 0 is all.
        key_slots, key_index, key_offsets, scale, softcap: as in `token_importance`.

    Returns:
        [R, H, D] of the query's dtype, contiguous; zeros for an unused row and for one that sees no
        key. What a row does not see cannot change it, NaN included.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    op = "lazy_attention"
    query_offsets = _offsets_or_one(op, "query", query, query_offsets)
    key_offsets = _offsets_or_one(op, "key_slots", key_slots, key_offsets)
    scale = _scale_or_default(op, query, scale)
    return call(
        op, query, query_index, query_offsets, key_store, value_store, key_slots, key_index,
        key_offsets, scale, window, softcap,
    )  # fmt: skip


# What stands in for an argument that is left out. The tensors it is made of are looked at first.


def _offsets_or_one(op: str, name: str, flat: Tensor, offsets: Tensor | None) -> Tensor:
    """The offsets, or where there are none, those of one sequence that has all of `flat`."""
    if offsets is not None:
        return offsets
    check(op, {name: flat})
    # A scalar has no size; the operator refuses it by its dimensions.
    size = flat.shape[0] if flat.dim() else 0
    return torch.arange(2, dtype=torch.int64, device=flat.device) * size


def _scale_or_default(op: str, query: Tensor, scale: float | None) -> float:
    """The scale, or 1 / sqrt(D)."""
    if scale is not None:
        return scale
    check(op, {"query": query})
    head_dim = query.shape[-1] if query.dim() else 0
    return float(head_dim) ** -0.5 if head_dim else 1.0


def _all_tokens(
    op: str, importance: Tensor, lengths: Tensor, candidate_offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every token of every sequence as a candidate, -1 behind each sequence's end."""
    check(op, {"importance": importance, "lengths": lengths})
    if candidate_offsets is not None:
        raise ValueError(
            f"lazyllm::{op}: candidate_offsets: expected None without candidates, got a tensor"
        )
    if importance.dim() != 2:
        raise ValueError(
            f"lazyllm::{op}: importance: expected 2 dimensions [B, C], got {importance.dim()}"
        )
    batch, columns = importance.shape
    if lengths.shape != (batch,):
        raise ValueError(
            f"lazyllm::{op}: lengths: expected shape [{batch}], got {list(lengths.shape)}"
        )
    index = torch.arange(columns, device=importance.device)
    candidates = torch.where(index < lengths[:, None], index, -1).view(-1)
    return candidates, torch.arange(batch + 1, device=importance.device) * columns


def _targets_or_keep(
    op: str, lengths: Tensor, targets: Tensor | None, keep: float | None
) -> Tensor:
    """How many tokens to take, in either spelling."""
    if keep is None:
        if targets is None:
            raise ValueError(f"lazyllm::{op}: targets: expected targets or keep, got neither")
        return targets
    if targets is not None:
        raise ValueError(f"lazyllm::{op}: targets: expected targets or keep, got both")
    check(op, {"lengths": lengths})
    check_type(op, "keep", keep, "float")
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"lazyllm::{op}: keep: expected a number in (0, 1], got {keep}")
    return torch.ceil(lengths.double() * keep - 1e-9).clamp(min=0).long()


def _room(op: str, candidates: Tensor, out_offsets: Tensor | None) -> int:
    """The length of the result: that of the candidates, or where the last sequence's part ends."""
    if out_offsets is None:
        check(op, {"candidates": candidates})
        return candidates.numel()
    check(op, {"out_offsets": out_offsets})
    return int(out_offsets[-1]) if out_offsets.numel() else 0
