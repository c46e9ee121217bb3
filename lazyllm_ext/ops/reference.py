"""The operators of ``torch.ops.lazyllm`` once more, in plain PyTorch: the oracle of their tests.

Each function has the name, the arguments and the results of its operator, and is written to be
read, not to be fast. Floating-point arithmetic is done in float32, or in float64 where the inputs
are float64, so that a test can ask for a result that is better than any kernel's. Arguments are
assumed to be right: the operators check them, these functions do not.

Words: everything ragged is packed, a flat tensor and int64 offsets ``[B + 1]`` of the B sequences.
A token's *index* is its place in its own sequence, a *slot* is a row of a flat store, and -1 in a
list of either marks an unused place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "aux_gather",
    "aux_scatter_",
    "decoder_layer_",
    "gated_activation",
    "kv_append_",
    "lazy_attention",
    "linear",
    "rms_norm",
    "rotate",
    "select_tokens",
    "token_importance",
]


def token_importance(
    query: Tensor,  # [R, H, D]
    query_index: Tensor,  # [R]
    query_offsets: Tensor,  # [B + 1]
    key_store: Tensor,  # [slots, Hkv, D]
    key_slots: Tensor,  # [K]
    key_index: Tensor,  # [K]
    key_offsets: Tensor,  # [B + 1]
    scale: float,
    softcap: float,
) -> Tensor:
    """Attention probability each key gets, mean over heads, summed over queries: float [K].

    A NaN or +inf logit takes no part in its softmax and makes that one key's result NaN; a query
    head that holds a NaN adds nothing at all.
    """
    num_heads = query.shape[1]
    importance = query.new_zeros(key_slots.shape[0], dtype=_math_dtype(query))
    for rows, keys in _sequences(query_index, query_offsets, key_slots, key_offsets):
        logits = _logits(query[rows], key_store[key_slots[keys]], scale, softcap)  # [rows, H, keys]
        visible = key_index[keys] <= query_index[rows, None]  # [rows, keys]
        query_is_nan = query[rows].isnan().any(dim=-1, keepdim=True)  # [rows, H, 1]
        takes_part = visible[:, None, :] & ~query_is_nan  # [rows, H, keys]

        broken = takes_part & (logits.isnan() | logits.isposinf())
        logits = logits.masked_fill(~takes_part | broken, -torch.inf)
        # A query head whose logits are all -inf divides 0 by 0: its probabilities are 0.
        probabilities = torch.softmax(logits, dim=-1).nan_to_num(nan=0.0)
        probabilities = probabilities.masked_fill(broken, torch.nan)
        importance[keys] = probabilities.sum(dim=(0, 1)) / num_heads
    return importance


def select_tokens(
    importance: Tensor,  # [B, C]
    lengths: Tensor,  # [B]
    candidates: Tensor,  # [Kc]
    candidate_offsets: Tensor,  # [B + 1]
    targets: Tensor,  # [B]
    out_offsets: Tensor,  # [B + 1]
    out_size: int,
    pool: int,
    protect_first: int,
    protect_last: int,
    cover_protected: bool,
) -> tuple[Tensor, Tensor]:
    """The best candidates of each sequence, ascending: int64 [out_size]; how many: int64 [B]."""
    indices = candidates.new_full((out_size,), -1)
    selected = torch.zeros_like(lengths)
    for b, length in enumerate(lengths.tolist()):
        mine = candidates[candidate_offsets[b] : candidate_offsets[b + 1]]
        mine = mine[mine >= 0]
        scores = importance[b, :length].tolist()
        scores = [-torch.inf if math.isnan(score) else score for score in scores]
        half = pool // 2

        ranking = []  # protected tokens first, then the higher pooled score, then the lower index
        num_protected = 0
        for token in mine.tolist():
            pooled = max(scores[max(0, token - half) : token + half + 1])
            protected = token < protect_first or token >= length - protect_last
            num_protected += protected
            ranking.append((not protected, -pooled, token))
        ranking.sort()

        target = int(targets[b])
        if target < 0:
            chosen = ranking
        else:
            count = max(1, num_protected, target) if cover_protected else target
            chosen = [entry for entry in ranking if not entry[0] or entry[1] < torch.inf][:count]
        start, end = int(out_offsets[b]), int(out_offsets[b + 1])
        if len(chosen) > end - start:
            raise RuntimeError(f"sequence {b} selects {len(chosen)} tokens, room for {end - start}")
        selected[b] = len(chosen)
        tokens = sorted(token for _, _, token in chosen)
        indices[start : start + len(tokens)] = torch.tensor(tokens, dtype=indices.dtype)
    return indices, selected


def aux_gather(
    source: Tensor,  # [N, ...]
    index: Tensor,  # [R]
) -> Tensor:
    """Rows of ``source`` [R, ...]; zeros where ``index`` is -1."""
    rows = source.new_zeros((index.shape[0], *source.shape[1:]))
    used = index >= 0
    rows[used] = source[index[used]]
    return rows


def aux_scatter_(
    destination: Tensor,  # [N, ...]
    index: Tensor,  # [R]
    rows: Tensor,  # [R, ...]
) -> None:
    """``destination[index[r]] = rows[r]``; -1 is skipped."""
    used = index >= 0
    destination[index[used]] = rows[used]


def kv_append_(
    key_store: Tensor,  # [slots, Hkv, D]
    value_store: Tensor,  # [slots, Hkv, D]
    slots: Tensor,  # [T]
    key: Tensor,  # [T, Hkv, D]
    value: Tensor,  # [T, Hkv, D]
) -> None:
    """``key_store[slots[t]] = key[t]``, and the same for values; -1 is skipped."""
    aux_scatter_(key_store, slots, key)
    aux_scatter_(value_store, slots, value)


def lazy_attention(
    query: Tensor,  # [R, H, D]
    query_index: Tensor,  # [R]
    query_offsets: Tensor,  # [B + 1]
    key_store: Tensor,  # [slots, Hkv, D]
    value_store: Tensor,  # [slots, Hkv, D]
    key_slots: Tensor,  # [K]
    key_index: Tensor,  # [K]
    key_offsets: Tensor,  # [B + 1]
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Causal attention by token index over the stored keys of each sequence: [R, H, D]."""
    output = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for rows, keys in _sequences(query_index, query_offsets, key_slots, key_offsets):
        visible = key_index[keys] <= query_index[rows, None]  # [rows, keys]
        if window > 0:
            visible &= key_index[keys] > query_index[rows, None] - window
        logits = _logits(query[rows], key_store[key_slots[keys]], scale, softcap)  # [rows, H, keys]
        values = _per_query_head(value_store[key_slots[keys]], query.shape[1])  # [H, keys, D]
        # Row by row, over its visible keys alone: a NaN in any other key or value cannot be met.
        for row, sees, row_logits in zip(rows.tolist(), visible, logits, strict=True):
            if sees.any():
                probabilities = torch.softmax(row_logits[:, sees], dim=-1)  # [H, seen]
                result = torch.einsum("hk,hkd->hd", probabilities, values[:, sees])
                output[row] = result.to(output.dtype)
    return output


def linear(
    x: Tensor,  # [R, I]
    weight: Tensor,  # [O, I]
    bias: Tensor | None,  # [O]
) -> Tensor:
    """``x @ weight.T + bias``, summed in float32 and rounded once: [R, O]."""
    math = _math_dtype(x)
    output = x.to(math) @ weight.to(math).T
    if bias is not None:
        output = output + bias.to(math)
    return output.to(x.dtype)


def rms_norm(
    x: Tensor,  # [R, D]
    weight: Tensor,  # [D]
    eps: float,
    offset: float,
) -> Tensor:
    """Each row over its root mean square, times offset + weight: [R, D]."""
    wide = x.to(_math_dtype(x))
    normed = wide / (wide.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (normed * (offset + weight.to(wide.dtype))).to(x.dtype)


def rotate(
    x: Tensor,  # [R, H, D]
    cos: Tensor,  # [R, half]
    sin: Tensor,  # [R, half]
    interleaved: bool,
) -> Tensor:
    """Pairs of each head's first 2 * half components rotated, the rest as it is: [R, H, D]."""
    half = cos.shape[1]
    math = _math_dtype(x)
    rotary, rest = x[..., : 2 * half].to(math), x[..., 2 * half :]
    if interleaved:
        first, second = rotary[..., 0::2], rotary[..., 1::2]
    else:
        first, second = rotary[..., :half], rotary[..., half:]
    cos, sin = cos.to(math).unsqueeze(1), sin.to(math).unsqueeze(1)  # [R, 1, half]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([rotated.to(x.dtype), rest], dim=-1)


def gated_activation(
    gate: Tensor,  # [R, I]
    up: Tensor,  # [R, I]
    activation: str,
) -> Tensor:
    """activation(gate) * up: [R, I]."""
    opened = gate.to(_math_dtype(gate))
    if activation == "silu":
        opened = torch.nn.functional.silu(opened)
    else:
        opened = torch.nn.functional.gelu(opened, approximate="tanh")
    return (opened * up.to(opened.dtype)).to(gate.dtype)


def decoder_layer_(
    hidden: Tensor,  # [R, C]
    key_store: Tensor,  # [slots, Hkv, D]
    value_store: Tensor,  # [slots, Hkv, D]
    slots: Tensor,  # [R]
    query_index: Tensor,  # [R]
    query_offsets: Tensor,  # [B + 1]
    key_slots: Tensor,  # [K]
    key_index: Tensor,  # [K]
    key_offsets: Tensor,  # [B + 1]
    cos: Tensor,  # [R, half]
    sin: Tensor,  # [R, half]
    weights: list[Tensor],
    optional: list[Tensor | None],
    eps: float,
    offset: float,
    scale: float,
    window: int,
    softcap: float,
    interleaved: bool,
    activation: str,
) -> Tensor:
    """A whole layer, by the other operators: [R, C]; the stores get the rows' keys and values."""
    input_norm, q, k, v, o, mlp_norm, gate, up, down = weights
    q_bias, k_bias, v_bias, o_bias, q_norm, k_norm, attention_out_norm, mlp_out_norm = optional
    head_dim = key_store.shape[2]

    def norm(rows: Tensor, weight: Tensor | None) -> Tensor:
        return rows if weight is None else rms_norm(rows, weight, eps, offset)

    def heads(rows: Tensor, weight: Tensor | None) -> Tensor:
        split = rows.view(len(rows), rows.shape[1] // head_dim, head_dim)
        normed = norm(split.flatten(0, 1), weight).view(split.shape)
        return rotate(normed, cos, sin, interleaved)

    before, x = hidden, norm(hidden, input_norm)
    query, key = heads(linear(x, q, q_bias), q_norm), heads(linear(x, k, k_bias), k_norm)
    slots = torch.where(query_index >= 0, slots, -1)
    kv_append_(key_store, value_store, slots, key, linear(x, v, v_bias).view(key.shape))
    attended = lazy_attention(
        query, query_index, query_offsets, key_store, value_store, key_slots, key_index,
        key_offsets, scale, window, softcap,
    )  # fmt: skip
    hidden = hidden + norm(linear(attended.flatten(1), o, o_bias), attention_out_norm)
    x = norm(hidden, mlp_norm)
    inner = gated_activation(linear(x, gate, None), linear(x, up, None), activation)
    output = hidden + norm(linear(inner, down, None), mlp_out_norm)
    return torch.where(query_index[:, None] >= 0, output, before)


def _math_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _sequences(
    query_index: Tensor, query_offsets: Tensor, key_slots: Tensor, key_offsets: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers of the rows and of the keys in use, of one sequence after the other."""
    for b in range(query_offsets.shape[0] - 1):
        rows, keys = _members(query_offsets, b), _members(key_offsets, b)
        yield rows[query_index[rows] >= 0], keys[key_slots[keys] >= 0]


def _members(offsets: Tensor, b: int) -> Tensor:
    """The numbers of sequence b's entries in the flat tensor."""
    return torch.arange(int(offsets[b]), int(offsets[b + 1]), device=offsets.device)


def _per_query_head(stored: Tensor, num_heads: int) -> Tensor:
    """Keys or values [keys, Hkv, D] as every query head reads them: [H, keys, D]."""
    group = num_heads // stored.shape[1]
    return stored.to(_math_dtype(stored)).repeat_interleave(group, dim=1).transpose(0, 1)


def _logits(query: Tensor, keys: Tensor, scale: float, softcap: float) -> Tensor:
    """What enters the softmax: query [rows, H, D], keys [keys, Hkv, D] -> [rows, H, keys]."""
    per_head = _per_query_head(keys, query.shape[1])  # [H, keys, D]
    logits = torch.einsum("rhd,hkd->rhk", query.to(_math_dtype(query)), per_head) * scale
    return softcap * torch.tanh(logits / softcap) if softcap > 0 else logits
