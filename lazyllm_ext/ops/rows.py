"""Operators on rows alone, which know nothing of tokens that wait or are dropped."""

from __future__ import annotations

from torch import Tensor

from .calling import call


def gated_activation(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """The middle of a gated MLP (arXiv 2002.05202), ``activation(gate) * up`` in one pass.

    Args:
        gate, up: [R, I] float of one dtype, the two projections.
        activation: "silu", or "gelu_tanh" for GELU by its tanh approximation.

    Returns:
        [R, I] of the dtype of `gate`, contiguous; computed in float32 and rounded once.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    return call("gated_activation", gate, up, activation)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A projection of few rows, ``torch.nn.functional.linear(x, weight, bias)``.

    The weights are read once for all rows; for many rows, libraries for matrix products are faster.

    Args:
        x, weight, bias: [R, I], [O, I], and [O] or None, float of one dtype.

    Returns:
        [R, O] of the dtype of `x`, contiguous; sums are taken in float32 and rounded once.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    return call("linear", x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    r"""Root mean square normalization (arXiv 1910.07467), ``torch.rms_norm`` in one pass.

    .. math:: o = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \, (\mathrm{offset} + w)

    Args:
        x: [R, D] float.
        weight: [D] of the same dtype.
        eps: added to the mean square of a row.
        offset: added to the weight; 1 for Gemma, which stores weight - 1.

    Returns:
        [R, D] of the dtype of `x`, contiguous; computed in float32 and rounded once.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    return call("rms_norm", x, weight, eps, offset)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    r"""Rotary position embedding (RoFormer, arXiv 2104.09864) of queries or keys.

    .. math:: o_1 = x_1 \cos - x_2 \sin, \quad o_2 = x_2 \cos + x_1 \sin

    Args:
        x: [R, H, D] float.
        cos, sin: [R, half] of the same dtype, each row's rotation, the same for all heads; half is
            at most D / 2. The first 2 * half components of a head are rotated, the rest is copied.
        interleaved: the components of a pair, x1 and x2, are neighbours; otherwise they are `half`
            apart. They come out as halves either way, queries and keys alike, so that no product
            of the two changes.

    Returns:
        [R, H, D] of the dtype of `x`, contiguous; computed in float32 and rounded once.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    return call("rotate", x, cos, sin, interleaved)
