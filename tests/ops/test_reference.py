"""The references against PyTorch's own operations, in cases simple enough to have them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lazyllm_ext.ops import reference


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _one_sequence(rows: int, heads: int, kv_heads: int, dim: int) -> list[torch.Tensor]:
    generator = _generator()
    return [
        torch.randn((rows, count, dim), generator=generator, dtype=torch.float64)
        for count in (heads, kv_heads, kv_heads)
    ]


def test_attention_is_scaled_dot_product_attention() -> None:
    query, key, value = _one_sequence(23, 6, 2, 8)
    index, offsets = torch.arange(23), torch.tensor([0, 23])
    got = reference.lazy_attention(
        query, index, offsets, key, value, index, index, offsets, 0.4, 0, 0.0
    )
    expected = functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        key.repeat_interleave(3, dim=1).transpose(0, 1),
        value.repeat_interleave(3, dim=1).transpose(0, 1),
        is_causal=True,
        scale=0.4,
    )
    torch.testing.assert_close(got, expected.transpose(0, 1))


def test_attention_window_is_the_last_tokens() -> None:
    query, key, value = _one_sequence(23, 6, 2, 8)
    index, offsets = torch.arange(23), torch.tensor([0, 23])
    got = reference.lazy_attention(
        query, index, offsets, key, value, index, index, offsets, 0.4, 5, 0.0
    )
    last = torch.arange(18, 23)
    expected = reference.lazy_attention(
        query[22:], index[22:], torch.tensor([0, 1]), key, value, last, last,
        torch.tensor([0, 5]), 0.4, 0, 0.0,
    )  # fmt: skip
    torch.testing.assert_close(got[22:], expected)


def test_importance_is_mean_softmax_over_heads() -> None:
    query, key, _ = _one_sequence(23, 6, 2, 8)
    got = reference.token_importance(
        query[-2:], torch.tensor([21, 22]), torch.tensor([0, 2]), key, torch.arange(23),
        torch.arange(23), torch.tensor([0, 23]), 0.4, 3.0,
    )  # fmt: skip
    expected = torch.zeros(23, dtype=torch.float64)
    for place in (21, 22):
        for head in range(6):
            logits = key[: place + 1, head // 3] @ query[place, head] * 0.4
            expected[: place + 1] += torch.softmax(3.0 * torch.tanh(logits / 3.0), dim=0) / 6
    torch.testing.assert_close(got, expected)


def test_selection_is_topk_of_max_pool() -> None:
    importance = torch.rand((1, 200), generator=_generator())
    tokens = torch.arange(200)
    index, selected = reference.select_tokens(
        importance, torch.tensor([200]), tokens, torch.tensor([0, 200]), torch.tensor([40]),
        torch.tensor([0, 50]), 50, 5, 0, 0, True,
    )  # fmt: skip
    pooled = functional.max_pool1d(importance, 5, stride=1, padding=2)[0]
    # Pooling makes ties, and a stable sort keeps them in the order of their index.
    expected = pooled.sort(descending=True, stable=True).indices[:40].sort().values
    assert index.tolist() == expected.tolist() + [-1] * 10
    assert selected.tolist() == [40]


def test_rotation_is_a_complex_product() -> None:
    x = torch.randn((7, 3, 20), generator=_generator(), dtype=torch.float64)
    angle = torch.randn((7, 8), generator=_generator(), dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    halves = torch.complex(x[..., :8], x[..., 8:16]) * turn
    neighbours = torch.view_as_complex(x[..., :16].unflatten(-1, (8, 2))) * turn
    for expected, interleaved in ((halves, False), (neighbours, True)):
        got = reference.rotate(x, angle.cos(), angle.sin(), interleaved)
        expected = torch.cat([expected.real, expected.imag, x[..., 16:]], dim=-1)
        torch.testing.assert_close(got, expected)


def test_gate_is_what_it_says() -> None:
    gate = torch.randn((7, 20), generator=_generator(), dtype=torch.float64)
    up = torch.randn((7, 20), generator=_generator(), dtype=torch.float64)
    silu = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(reference.gated_activation(gate, up, "silu"), silu)
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    gelu = gate / 2 * (1 + inner.tanh()) * up
    torch.testing.assert_close(reference.gated_activation(gate, up, "gelu_tanh"), gelu)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_is_that_of_pytorch(offset: float) -> None:
    x = torch.randn((7, 20), generator=_generator(), dtype=torch.float64)
    weight = torch.randn((20,), generator=_generator(), dtype=torch.float64)
    expected = torch.rms_norm(x, [20], offset + weight, 1e-5)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5, offset), expected)
