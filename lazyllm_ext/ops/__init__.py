"""The operators of LazyLLM, documented and with defaults.

They are the parts of Fu et al., "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM
Inference" (arXiv 2407.14057, 2024): score the tokens by the attention that the last queries give
them, select the best, move hidden states in and out of the Aux Cache, store keys and values, attend
over what is stored. ``torch.ops.lazyllm.*`` has the same operators with every argument spelled out,
for TorchScript, ``torch.export`` and C++; :mod:`lazyllm_ext.ops.reference` has them in plain
PyTorch.

What holds for all of them:

* Ragged data are packed: a flat tensor and int64 offsets ``[B + 1]`` of the B sequences, the first
  0, the last the flat size. Offsets left out mean one sequence.
* A token's *index* is its place in its own sequence, 0 … n - 1. A *slot* is a row of a flat store
  of keys and values. Both are int64, and -1 marks an unused place: it is skipped.
* Floats are float32, bfloat16 or float16, all of one dtype in a call; sums are taken in float32.
  The last dimension must have stride 1, other strides are honoured.
* All tensors are on one device. CPU operators refuse slots, indices and offsets out of range; CUDA
  operators do not read them back, and treat an entry out of range as unused.
* The same input gives the same result, bit by bit, and a sequence gives in a batch what it gives
  alone; on CUDA, importance and attention to rounding, since how a sequence is split follows the
  whole batch.
* Inference only: with gradients enabled, an input that requires grad is refused (RuntimeError).

A wrong argument raises ``TypeError`` (not a tensor, wrong dtype) or ``ValueError`` (all else), with
the argument, what was expected and what was got. The operators themselves raise ``RuntimeError``
with that sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, loading, reference
from .checks import FLOATS, INDEX
from .layer import decoder_layer_
from .rows import gated_activation, linear, rms_norm, rotate

loading.load()

__all__ = [
    "aux_gather",
    "aux_scatter_",
    "decoder_layer_",
    "gated_activation",
    "kv_append_",
    "lazy_attention",
    "linear",
    "reference",
    "rms_norm",
    "rotate",
    "select_tokens",
    "token_importance",
]


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
    query_offsets = checks.offsets_or_one(op, "query", query, query_offsets)
    key_offsets = checks.offsets_or_one(op, "key_slots", key_slots, key_offsets)
    checks.floats(op, query=query, key_store=key_store)
    checks.indices(
        op,
        query_index=query_index,
        query_offsets=query_offsets,
        key_slots=key_slots,
        key_index=key_index,
        key_offsets=key_offsets,
    )
    scale = checks.scale_or_default(op, query, scale)
    checks.number(op, "softcap", softcap)
    result: Tensor = checks.call(
        op,
        query,
        query_index,
        query_offsets,
        key_store,
        key_slots,
        key_index,
        key_offsets,
        scale,
        softcap,
    )
    return result


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
        candidates: [Kc] int64, token indices to choose from, ascending in a sequence, packed by
            `candidate_offsets`; None is all tokens.
        candidate_offsets: [B + 1] int64, or None for one sequence.
        targets: [B] int64, how many tokens to take; below 0: all candidates, whatever their score.
        out_offsets: [B + 1] int64, where each sequence's result begins; None leaves room for all
            candidates.
        out_size: length of the result, ``out_offsets[B]``; may be left out with `out_offsets`, and
            is read from the device if only that is given.
        pool: odd number of tokens pooled.
        protect_first: number of protected tokens at the beginning.
        protect_last: number of protected tokens at the end.
        cover_protected: take at least the protected tokens, and at least one.
        keep: part of the n tokens to take, in (0, 1], in place of `targets`: the target is
            ``ceil(keep * n - 1e-9)``.

    Returns:
        int64 [out_size]: each sequence's tokens from its out offset on, -1 in unused places; and
        int64 [B]: how many there are.

    Raises:
        TypeError, ValueError: an argument is wrong, or on the CPU, more tokens are to be taken than
            there is room for (CUDA takes the best that fit).
    """
    op = "select_tokens"
    checks.tensor(op, "importance", importance, (torch.float32,))
    checks.tensor(op, "lengths", lengths, INDEX)
    if candidates is None:
        candidates, candidate_offsets = checks.all_tokens(
            op, importance, lengths, candidate_offsets
        )
    candidate_offsets = checks.offsets_or_one(op, "candidates", candidates, candidate_offsets)
    targets = checks.targets_or_keep(op, lengths, targets, keep)
    if out_offsets is None:
        out_offsets = candidate_offsets
        out_size = candidates.shape[0] if out_size is None else out_size
    checks.indices(
        op,
        candidates=candidates,
        candidate_offsets=candidate_offsets,
        targets=targets,
        out_offsets=out_offsets,
    )
    if out_size is None:
        out_size = int(out_offsets[-1]) if out_offsets.numel() else 0
    checks.integer(op, "out_size", out_size)
    checks.integer(op, "pool", pool)
    checks.integer(op, "protect_first", protect_first)
    checks.integer(op, "protect_last", protect_last)
    checks.boolean(op, "cover_protected", cover_protected)
    result: tuple[Tensor, Tensor] = checks.call(
        op,
        importance,
        lengths,
        candidates,
        candidate_offsets,
        targets,
        out_offsets,
        out_size,
        pool,
        protect_first,
        protect_last,
        cover_protected,
    )
    return result


def aux_gather(source: Tensor, index: Tensor) -> Tensor:
    """Rows out of the Aux Cache (arXiv 2407.14057, section 3.3) or of any row-wise tensor.

    ``torch.index_select(source, 0, index)``, with zeros for -1.

    Args:
        source: [N, ...] float or int64; a row must be contiguous, rows may be any stride apart.
        index: [R] int64, rows of `source`, or -1.

    Returns:
        [R, ...] of the source's dtype.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    checks.tensor("aux_gather", "source", source, FLOATS + INDEX)
    checks.indices("aux_gather", index=index)
    result: Tensor = checks.call("aux_gather", source, index)
    return result


def aux_scatter_(destination: Tensor, index: Tensor, rows: Tensor) -> None:
    """Rows into the Aux Cache (arXiv 2407.14057, section 3.3) or any row-wise tensor, in place.

    ``destination[index] = rows``, leaving -1 out.

    Args:
        destination: [N, ...] float or int64; a row must be contiguous, rows may be any stride
            apart.
        index: [R] int64, distinct rows of `destination`, or -1. That they are distinct is not
            checked.
        rows: [R, ...] of the destination's dtype, rows as in `destination`.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    op = "aux_scatter_"
    checks.tensor(op, "destination", destination, FLOATS + INDEX)
    checks.tensor(op, "rows", rows, (destination.dtype,))
    checks.indices(op, index=index)
    checks.call(op, destination, index, rows)


def kv_append_(
    key_store: Tensor, value_store: Tensor, slots: Tensor, key: Tensor, value: Tensor
) -> None:
    """Put new keys and values into their slots of the stores, in place.

    ``key_store[slots] = key; value_store[slots] = value``, leaving -1 out.

    Args:
        key_store: [slots, Hkv, D] float.
        value_store: [slots, Hkv, D], the same dtype.
        slots: [T] int64, distinct rows of the stores, or -1. That they are distinct is not checked.
        key: [T, Hkv, D], the same dtype.
        value: [T, Hkv, D], the same dtype.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    checks.floats("kv_append_", key_store=key_store, value_store=value_store, key=key, value=value)
    checks.indices("kv_append_", slots=slots)
    checks.call("kv_append_", key_store, value_store, slots, key, value)


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
    query_offsets = checks.offsets_or_one(op, "query", query, query_offsets)
    key_offsets = checks.offsets_or_one(op, "key_slots", key_slots, key_offsets)
    checks.floats(op, query=query, key_store=key_store, value_store=value_store)
    checks.indices(
        op,
        query_index=query_index,
        query_offsets=query_offsets,
        key_slots=key_slots,
        key_index=key_index,
        key_offsets=key_offsets,
    )
    scale = checks.scale_or_default(op, query, scale)
    checks.integer(op, "window", window)
    checks.number(op, "softcap", softcap)
    result: Tensor = checks.call(
        op,
        query,
        query_index,
        query_offsets,
        key_store,
        value_store,
        key_slots,
        key_index,
        key_offsets,
        scale,
        window,
        softcap,
    )
    return result
