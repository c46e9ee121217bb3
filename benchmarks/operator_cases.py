"""The operators at sizes of real use, each beside the PyTorch way of doing the same.

Heads and widths are SmolLM2-135M's where nothing else is said. Sizes "past the caches" are those of
65,536 tokens and more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OPS: Any = torch.ops.lazyllm
HEADS, KV_HEADS, DIM, WIDTH, INNER = 9, 3, 64, 576, 1536
_CHECKED_ROWS = 128  # of an attention, in float64


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        ours, pytorch: the two ways; both return a tensor to compare.
        amount: bytes that must move, or floating-point operations.
        unit: "GB/s" or "GFLOP/s".
        exact: float64 result to judge both by, and how to take its rows from a result; None where
            the two ways must agree bit by bit.
    """

    operator: str
    name: str
    ours: Callable[[], Tensor]
    pytorch: Callable[[], Tensor]
    amount: float
    unit: str
    exact: Callable[[], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Maker:
    """Makes cases of one dtype on one device."""

    dtype: torch.dtype
    device: str

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def every(self, n: int) -> Tensor:
        return torch.arange(n, device=self.device)

    def span(self, end: int) -> Tensor:
        return torch.tensor([0, end], device=self.device)

    def some(self, rows: int, of: int) -> Tensor:
        """Ascending row numbers."""
        return torch.randperm(of, device=self.device)[:rows].sort().values

    def attention(
        self,
        name: str,
        rows: Tensor,
        tokens: int,
        shape: tuple[int, int, int] = (HEADS, KV_HEADS, DIM),
        unit: str = "GFLOP/s",
    ) -> Case:
        """These rows over `tokens` keys, causal; shape: heads, key heads, head size."""
        heads, kv_heads, dim = shape
        query = self.randn(rows.numel(), heads, dim)
        key, value = self.randn(2, tokens, kv_heads, dim).unbind()
        index, whole = self.every(tokens), rows.numel() == tokens
        mask = None if whole or rows.numel() == 1 else index <= rows[:, None]

        def ours() -> Tensor:
            offsets = self.span(rows.numel()), self.span(tokens)
            return OPS.lazy_attention(
                query, rows, offsets[0], key, value, index, index, offsets[1], dim**-0.5, 0, 0.0
            )

        def pytorch() -> Tensor:
            q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=whole, enable_gqa=True
            )
            return out[0].transpose(0, 1)

        def exact() -> tuple[Tensor, Tensor]:
            count = min(_CHECKED_ROWS, rows.numel())
            chosen = torch.linspace(0, rows.numel() - 1, count, device=self.device).long()
            weights = _probabilities(query[chosen], key, rows[chosen], index)
            repeated = value.double().repeat_interleave(heads // kv_heads, 1)
            return torch.einsum("qhk,khd->qhd", weights, repeated), chosen

        pairs = float((rows + 1).sum())
        amount = 4.0 * heads * dim * pairs if unit == "GFLOP/s" else 2.0 * key.nbytes
        return Case("lazy_attention", name, ours, pytorch, amount, unit, exact)

    def importance(self, tokens: int, window: int) -> Case:
        """The last `window` queries over every key."""
        query, key = self.randn(window, HEADS, DIM), self.randn(tokens, KV_HEADS, DIM)
        index = self.every(tokens)
        rows = index[-window:]

        def ours() -> Tensor:
            offsets = self.span(window), self.span(tokens)
            return OPS.token_importance(
                query, rows, offsets[0], key, index, index, offsets[1], DIM**-0.5, 0.0
            )

        def pytorch() -> Tensor:
            repeated = key.repeat_interleave(HEADS // KV_HEADS, 1)
            # In float32, as importance has to be whatever the model's dtype.
            logits = torch.einsum("qhd,khd->qhk", query.float(), repeated.float()) * DIM**-0.5
            logits.masked_fill_((index > rows[:, None])[:, None], -torch.inf)
            return logits.softmax(-1, dtype=torch.float32).mean(1).sum(0)

        def exact() -> tuple[Tensor, Tensor]:
            return _probabilities(query, key, rows, index).mean(1).sum(0), index

        name = f"{window} queries over {tokens}"
        return Case("token_importance", name, ours, pytorch, key.nbytes, "GB/s", exact)

    def linear(self, rows: int, into: int = 576, out: int = 49152) -> Case:
        """A projection of few rows; SmolLM2's output layer, which no cache holds."""
        x, weight = self.randn(rows, into), self.randn(out, into)

        def exact() -> tuple[Tensor, Tensor]:
            return x.double() @ weight.double().T, self.every(rows)

        return Case(
            "linear",
            f"{rows} rows, {into} to {out}",
            lambda: OPS.linear(x, weight, None),
            lambda: torch.nn.functional.linear(x, weight),
            weight.nbytes,
            "GB/s",
            exact,
        )

    def select(self, tokens: int, keep: float, pool: int) -> Case:
        """The best of every token, in ascending order; scores are float32 always."""
        scores = torch.rand(1, tokens, device=self.device)
        target = int(keep * tokens)
        lengths = torch.tensor([tokens], device=self.device)
        targets = torch.tensor([target], device=self.device)
        candidates, offsets, out = self.every(tokens), self.span(tokens), self.span(target)

        def ours() -> Tensor:
            return OPS.select_tokens(
                scores, lengths, candidates, offsets, targets, out, target, pool, 0, 0, True
            )[0]

        def pytorch() -> Tensor:
            if pool == 1:
                return scores[0].topk(target).indices.sort().values
            pooled = torch.nn.functional.max_pool1d(scores[None], pool, 1, pool // 2)[0, 0]
            # Stable, for the lower index at a tie; `topk` promises no order among equals.
            return pooled.sort(descending=True, stable=True).indices[:target].sort().values

        name = f"{target} of {tokens}, pool {pool}"
        return Case("select_tokens", name, ours, pytorch, scores.nbytes, "GB/s")

    def gather(self, rows: int, of: int) -> Case:
        source, index = self.randn(of, WIDTH), self.some(rows, of)
        return Case(
            "aux_gather",
            f"{rows} of {of} rows of {WIDTH}",
            lambda: OPS.aux_gather(source, index),
            lambda: source.index_select(0, index),
            2.0 * rows * WIDTH * source.itemsize,
            "GB/s",
        )

    def scatter(self, rows: int, into: int) -> Case:
        index, source = self.some(rows, into), self.randn(rows, WIDTH)
        mine, theirs = torch.zeros(2, into, WIDTH, device=self.device, dtype=self.dtype).unbind()

        def ours() -> Tensor:
            OPS.aux_scatter_(mine, index, source)
            return mine

        return Case(
            "aux_scatter_",
            f"{rows} into {into} rows of {WIDTH}",
            ours,
            lambda: theirs.index_copy_(0, index, source),
            2.0 * source.nbytes,
            "GB/s",
        )

    def append(self, rows: int, slots: int) -> Case:
        shape = slots, KV_HEADS, DIM
        mine = torch.zeros(2, *shape, device=self.device, dtype=self.dtype)
        theirs = torch.zeros_like(mine)
        key, value = self.randn(2, rows, KV_HEADS, DIM).unbind()
        index = self.every(rows)

        def ours() -> Tensor:
            OPS.kv_append_(mine[0], mine[1], index, key, value)
            return mine

        def pytorch() -> Tensor:
            theirs[0].index_copy_(0, index, key)
            theirs[1].index_copy_(0, index, value)
            return theirs

        return Case("kv_append_", f"{rows} rows", ours, pytorch, 4.0 * key.nbytes, "GB/s")

    def rms_norm(self, rows: int) -> Case:
        """The hidden states of a prefill or of a decoding step."""
        x, weight = self.randn(rows, WIDTH), self.randn(WIDTH)

        def exact() -> tuple[Tensor, Tensor]:
            return torch.rms_norm(x.double(), [WIDTH], weight.double(), 1e-5), self.every(rows)

        return Case(
            "rms_norm",
            f"{rows} rows",
            lambda: OPS.rms_norm(x, weight, 1e-5, 0.0),
            lambda: torch.rms_norm(x, [WIDTH], weight, 1e-5),
            2.0 * x.nbytes,
            "GB/s",
            exact,
        )

    def gate(self, rows: int) -> Case:
        """The middle of the MLP in a prefill's blocks or a step."""
        gate, up = self.randn(rows, INNER), self.randn(rows, INNER)

        def gated(gate: Tensor, up: Tensor) -> Tensor:
            return torch.nn.functional.silu(gate).mul_(up)

        return Case(
            "gated_activation", f"{rows} rows", lambda: OPS.gated_activation(gate, up, "silu"),
            lambda: gated(gate, up), 3.0 * gate.nbytes, "GB/s",
            lambda: (gated(gate.double(), up.double()), self.every(rows)),
        )  # fmt: skip

    def rotate(self, rows: int) -> Case:
        """The queries of a prefill or of a decoding step."""
        x, angle = self.randn(rows, HEADS, DIM), 9 * torch.randn(rows, DIM // 2, device=self.device)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)

        def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            """As transformers writes it."""
            cos, sin = torch.cat([cos, cos], -1)[:, None], torch.cat([sin, sin], -1)[:, None]
            return x * cos + torch.cat([-x[..., DIM // 2 :], x[..., : DIM // 2]], -1) * sin

        def exact() -> tuple[Tensor, Tensor]:
            return turned(x.double(), cos.double(), sin.double()), self.every(rows)

        return Case(
            "rotate",
            f"{rows} rows",
            lambda: OPS.rotate(x, cos, sin, False),
            lambda: turned(x, cos, sin),
            2.0 * x.nbytes,
            "GB/s",
            exact,
        )

    def layer(self, tokens: int) -> Case:
        """A step of decoding through one layer of SmolLM2-135M, over so many tokens."""
        sizes = [(HEADS * DIM, WIDTH), (KV_HEADS * DIM, WIDTH), (KV_HEADS * DIM, WIDTH)]
        sizes += [(WIDTH, HEADS * DIM), (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
        q, k, v, o, gate, up, down = [self.randn(*size) * size[1] ** -0.5 for size in sizes]
        norms = 1 + self.randn(2, WIDTH) / 8
        weights = [norms[0], q, k, v, o, norms[1], gate, up, down]
        hidden, angle = self.randn(1, WIDTH), torch.randn(1, DIM // 2)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        store = self.randn(2, tokens, KV_HEADS, DIM)
        index, place = self.every(tokens), self.every(tokens)[-1:]
        theirs = store.transpose(1, 2).contiguous()  # [2, kv_heads, tokens, dim]

        def ours() -> Tensor:
            return OPS.decoder_layer_(
                hidden, store[0], store[1], place, place, self.span(1), index, index,
                self.span(tokens), cos, sin, weights, [None] * 8, 1e-5, 0.0, DIM**-0.5, 0, 0.0,
                False, "silu",
            )  # fmt: skip

        def step(dtype: torch.dtype) -> Tensor:
            """As transformers writes it."""
            functional, to = torch.nn.functional, lambda x: x.to(dtype)
            x = functional.rms_norm(to(hidden), [WIDTH], to(norms[0]), 1e-5)
            both = [torch.cat([to(each), to(each)], -1) for each in (cos, sin)]

            def turned(x: Tensor) -> Tensor:
                return (
                    x * both[0] + torch.cat([-x[..., DIM // 2 :], x[..., : DIM // 2]], -1) * both[1]
                )

            query, key, value = [
                functional.linear(x, to(own)).view(-1, 1, DIM) for own in (q, k, v)
            ]
            stored = to(theirs)
            stored[0, :, -1:], stored[1, :, -1:] = turned(key), value
            attended = functional.scaled_dot_product_attention(
                turned(query)[None], stored[0][None], stored[1][None], enable_gqa=True
            )
            middle = to(hidden) + functional.linear(attended.view(1, -1), to(o))
            x = functional.rms_norm(middle, [WIDTH], to(norms[1]), 1e-5)
            opened = functional.silu(functional.linear(x, to(gate))) * functional.linear(x, to(up))
            return middle + functional.linear(opened, to(down))

        moved = sum(own.nbytes for own in weights) + store.nbytes
        return Case(
            "decoder_layer_",
            f"over {tokens}",
            ours,
            lambda: step(self.dtype),
            float(moved),
            "GB/s",
            lambda: (step(torch.float64), self.every(1)),
        )


def _probabilities(query: Tensor, key: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Attention probabilities [rows, heads, keys] in float64."""
    heads, dim = query.shape[1:]
    repeated = key.double().repeat_interleave(heads // key.size(1), 1)
    logits = torch.einsum("qhd,khd->qhk", query.double(), repeated) * dim**-0.5
    return logits.masked_fill((index > rows[:, None])[:, None], -torch.inf).softmax(-1)


def cases(dtype: torch.dtype, device: str) -> list[Callable[[], Case]]:
    """What makes the cases, one at a time: together they would fill the memory."""
    make = Maker(dtype, device)
    every, some = make.every, make.some

    def prefill(tokens: int, *shape: int) -> Callable[[], Case]:
        name = f"prefill {tokens}, {shape[0]}/{shape[1]} heads of {shape[2]}"
        return lambda: make.attention(name, every(tokens), tokens, (shape[0], shape[1], shape[2]))

    def boundary(kept: int, tokens: int) -> Callable[[], Case]:
        name = f"boundary, {kept} of {tokens}"
        return lambda: make.attention(name, some(kept, tokens), tokens)

    def decoding(tokens: int) -> Callable[[], Case]:
        name = f"decoding over {tokens}"
        return lambda: make.attention(name, every(tokens)[-1:], tokens, unit="GB/s")

    found = [
        prefill(4096, HEADS, KV_HEADS, DIM),
        prefill(2048, 14, 2, 64),
        prefill(2048, 8, 2, 128),
        prefill(2048, 4, 1, 256),
        boundary(1638, 4096),
        boundary(64, 4096),
        decoding(4096),
        decoding(32768),
        lambda: make.importance(4096, 1),
        lambda: make.importance(4096, 32),
        lambda: make.importance(65536, 1),
        lambda: make.importance(131072, 1),
        lambda: make.importance(131072, 32),
        lambda: make.gather(1638, 4096),
        lambda: make.gather(26214, 65536),
        lambda: make.gather(52429, 131072),
        lambda: make.scatter(2458, 4096),
        lambda: make.scatter(39322, 65536),
        lambda: make.scatter(78643, 131072),
        lambda: make.append(4096, 4352),
        lambda: make.append(131072, 131072),
        *(lambda rows=rows: make.linear(rows) for rows in (1, 4, 64)),
        lambda: make.rms_norm(1),
        lambda: make.rms_norm(4096),
        *(lambda rows=rows: make.gate(rows) for rows in (1, 1024)),
        lambda: make.rotate(1),
        lambda: make.rotate(4096),
    ]
    if device == "cpu":
        found += [lambda: make.layer(512), lambda: make.layer(4096)]
    if dtype == torch.float32:  # scores are float32 whatever the model is
        for tokens, pool in ((4096, 7), (65536, 1), (65536, 7), (131072, 1), (131072, 7)):
            found.append(lambda t=tokens, p=pool: make.select(t, 0.4, p))
    return found


def small_cases(dtype: torch.dtype, device: str) -> list[Callable[[], Case]]:
    """One of each operator, in milliseconds."""
    make = Maker(dtype, device)
    return [
        lambda: make.attention("prefill 256", make.every(256), 256),
        lambda: make.attention("boundary", make.some(64, 256), 256),
        lambda: make.attention("decoding", make.every(256)[-1:], 256, unit="GB/s"),
        lambda: make.importance(256, 32),
        lambda: make.select(256, 0.4, 7),
        lambda: make.gather(100, 256),
        lambda: make.scatter(100, 256),
        lambda: make.append(256, 256),
        lambda: make.linear(2, 64, 96),
        lambda: make.rms_norm(16),
        lambda: make.gate(16),
        lambda: make.rotate(16),
        *([lambda: make.layer(64)] if device == "cpu" else []),
    ]
