"""Every operator at sizes of real use, beside the PyTorch way of doing the same.

Each case is verified before it is timed: the operator's result against the PyTorch way's.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timing import interleave, seconds
from torch import Tensor

import lazyllm_ext  # noqa: F401

OPS = torch.ops.lazyllm
HEADS, KV_HEADS, DIM = 9, 3, 64  # SmolLM2-135M


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        ours, pytorch: the two ways; both return a tensor to compare.
        amount: bytes that must move, or floating-point operations.
        unit: "GB/s" or "GFLOP/s".
    """

    operator: str
    name: str
    ours: Callable[[], Tensor]
    pytorch: Callable[[], Tensor]
    amount: float
    unit: str


def every(n: int) -> Tensor:
    return torch.arange(n)


def span(*ends: int) -> Tensor:
    return torch.tensor([0, *ends])


def copy_case(mebibytes: int = 64) -> Case:
    """What the machine can do: the yardstick for everything that moves bytes."""
    source = torch.randn(mebibytes * 2**18)
    target = torch.empty_like(source)
    copy = lambda: target.copy_(source)  # noqa: E731
    return Case("(copy)", f"{mebibytes} MiB", copy, copy, 2 * source.nbytes, "GB/s")


def product_case() -> Case:
    """The yardstick for everything that computes."""
    x, weight = torch.randn(4096, 576), torch.randn(1536, 576)
    product = lambda: torch.nn.functional.linear(x, weight)  # noqa: E731
    return Case(
        "(matrix product)", "4096 x 576 x 1536", product, product, 2 * 4096 * 576 * 1536, "GFLOP/s"
    )


def prefill_attention(tokens: int, heads: int, kv_heads: int, dim: int) -> Case:
    """A whole causal prefill."""
    query = torch.randn(tokens, heads, dim)
    key, value = torch.randn(2, tokens, kv_heads, dim).unbind()
    index = every(tokens)

    def ours() -> Tensor:
        return OPS.lazy_attention(
            query, index, span(tokens), key, value, index, index, span(tokens), dim**-0.5, 0, 0.0
        )

    def pytorch() -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    flops = 4 * heads * dim * tokens * (tokens + 1) / 2
    name = f"prefill {tokens}, {heads}/{kv_heads} heads of {dim}"
    return Case("lazy_attention", name, ours, pytorch, flops, "GFLOP/s")


def boundary_attention(tokens: int, kept: int) -> Case:
    """A boundary layer: some rows, all keys."""
    query = torch.randn(kept, HEADS, DIM)
    key, value = torch.randn(2, tokens, KV_HEADS, DIM).unbind()
    index, rows = every(tokens), torch.randperm(tokens)[:kept].sort().values
    mask = index <= rows[:, None]

    def ours() -> Tensor:
        return OPS.lazy_attention(
            query, rows, span(kept), key, value, index, index, span(tokens), DIM**-0.5, 0, 0.0
        )

    def pytorch() -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    flops = 4.0 * HEADS * DIM * float(mask.sum())
    return Case("lazy_attention", f"boundary, {kept} of {tokens}", ours, pytorch, flops, "GFLOP/s")


def decoding_attention(tokens: int) -> Case:
    """One row over every key."""
    query = torch.randn(1, HEADS, DIM)
    key, value = torch.randn(2, tokens, KV_HEADS, DIM).unbind()
    index = every(tokens)

    def ours() -> Tensor:
        return OPS.lazy_attention(
            query, index[-1:], span(1), key, value, index, index, span(tokens), DIM**-0.5, 0, 0.0
        )

    def pytorch() -> Tensor:
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return out[0].transpose(0, 1)

    return Case("lazy_attention", f"decoding over {tokens}", ours, pytorch, 2 * key.nbytes, "GB/s")


def importance(tokens: int, window: int) -> Case:
    """The last `window` queries over every key."""
    query = torch.randn(window, HEADS, DIM)
    key = torch.randn(tokens, KV_HEADS, DIM)
    index = every(tokens)

    def ours() -> Tensor:
        return OPS.token_importance(
            query, index[-window:], span(window), key, index, index, span(tokens), DIM**-0.5, 0.0
        )

    def pytorch() -> Tensor:
        repeated = key.repeat_interleave(HEADS // KV_HEADS, 1)
        logits = torch.einsum("qhd,khd->qhk", query, repeated) * DIM**-0.5
        logits.masked_fill_((index > index[-window:, None])[:, None], -torch.inf)
        return logits.softmax(-1).mean(1).sum(0)

    name = f"{window} queries over {tokens}"
    return Case("token_importance", name, ours, pytorch, key.nbytes, "GB/s")


def select(tokens: int, keep: float, pool: int) -> Case:
    """The best of every token, in ascending order."""
    scores = torch.rand(1, tokens)
    target = int(keep * tokens)
    lengths, targets = torch.tensor([tokens]), torch.tensor([target])
    candidates, offsets, out = every(tokens), span(tokens), span(target)

    def ours() -> Tensor:
        return OPS.select_tokens(
            scores, lengths, candidates, offsets, targets, out, target, pool, 0, 0, True
        )[0]

    def pytorch() -> Tensor:
        pooled = scores
        if pool > 1:
            pooled = torch.nn.functional.max_pool1d(scores[None], pool, 1, pool // 2)[0]
        # Stable, for the lower index at a tie; `topk` promises no order among equals.
        if pool > 1:
            return pooled[0].sort(descending=True, stable=True).indices[:target].sort().values
        return pooled[0].topk(target).indices.sort().values

    name = f"{target} of {tokens}, pool {pool}"
    return Case("select_tokens", name, ours, pytorch, scores.nbytes, "GB/s")


def gather(rows: int, of: int, width: int = 576) -> Case:
    source, index = torch.randn(of, width), torch.randperm(of)[:rows].sort().values
    amount = 2.0 * rows * width * 4
    return Case(
        "aux_gather",
        f"{rows} of {of} rows of {width}",
        lambda: OPS.aux_gather(source, index),
        lambda: source.index_select(0, index),
        amount,
        "GB/s",
    )


def scatter(rows: int, into: int, width: int = 576) -> Case:
    target, index = torch.zeros(into, width), torch.randperm(into)[:rows].sort().values
    source = torch.randn(rows, width)

    def ours() -> Tensor:
        OPS.aux_scatter_(target, index, source)
        return target

    return Case(
        "aux_scatter_",
        f"{rows} into {into} rows of {width}",
        ours,
        lambda: target.index_copy_(0, index, source),
        2.0 * source.nbytes,
        "GB/s",
    )


def append(rows: int, slots: int) -> Case:
    keys, values = torch.zeros(2, slots, KV_HEADS, DIM).unbind()
    key, value = torch.randn(2, rows, KV_HEADS, DIM).unbind()
    index = every(rows)

    def ours() -> Tensor:
        OPS.kv_append_(keys, values, index, key, value)
        return keys

    def pytorch() -> Tensor:
        values.index_copy_(0, index, value)
        return keys.index_copy_(0, index, key)

    return Case("kv_append_", f"{rows} rows", ours, pytorch, 4.0 * key.nbytes, "GB/s")


def cases() -> list[Case]:
    return [
        copy_case(),
        product_case(),
        prefill_attention(4096, HEADS, KV_HEADS, DIM),
        prefill_attention(2048, 14, 2, 64),
        prefill_attention(2048, 8, 2, 128),
        prefill_attention(2048, 4, 1, 256),
        boundary_attention(4096, 1638),
        boundary_attention(4096, 64),
        decoding_attention(4096),
        decoding_attention(32768),
        importance(4096, 1),
        importance(4096, 32),
        importance(65536, 1),
        select(4096, 0.4, 7),
        select(65536, 0.4, 1),
        select(65536, 0.4, 7),
        gather(1638, 4096),
        gather(26000, 65536),
        scatter(2458, 4096),
        append(4096, 4352),
        append(65536, 65536),
    ]


def measure(rounds: int) -> list[dict[str, Any]]:
    """Verify and time every case; one row each."""
    torch.manual_seed(0)
    rows = []
    for case in cases():
        torch.testing.assert_close(case.ours(), case.pytorch(), atol=2e-5, rtol=1e-4)
        times = interleave(
            {"ours": seconds(case.ours), "PyTorch": seconds(case.pytorch)}, rounds, 2
        )
        ours = statistics.median(times["ours"])
        rows.append(
            {
                "operator": case.operator,
                "case": case.name,
                "ms": ours * 1e3,
                "pytorch_ms": statistics.median(times["PyTorch"]) * 1e3,
                "rate": f"{case.amount / ours * 1e-9:.1f} {case.unit}",
            }
        )
    return rows
