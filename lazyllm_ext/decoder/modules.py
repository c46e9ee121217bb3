"""Small modules around a model's own parameters, for what the decoder computes itself."""

from typing import Tuple

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = x / rms(x) · (offset + weight) over the last dim.

    Args:
        weight: the model's own parameter, shared and not copied.
        eps: added to the mean square.
        offset: 1.0 for the Gemma family, which stores weight - 1.
    """

    def __init__(self, weight: nn.Parameter, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        if self.offset == 0.0:
            return torch.rms_norm(x, [x.size(-1)], self.weight, self.eps)
        # The sum is taken in float32: 1 + w of a bfloat16 weight would lose w's last bits.
        scaled = torch.rms_norm(
            x.float(), [x.size(-1)], self.weight.float() + self.offset, self.eps
        )
        return scaled.to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding with fixed frequencies.

    Args:
        inv_freq: [head_dim / 2] float32, the model's own buffer.
        scaling: factor on cos and sin (transformers' `attention_scaling`).
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor, scaling: float = 1.0):
        super().__init__()
        self.register_buffer("inv_freq", inv_freq.float(), persistent=False)
        self.scaling = scaling

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        """positions [rows] int64 -> cos, sin [rows, 1, head_dim / 2] in `dtype`."""
        angle = positions.float().unsqueeze(1) * self.inv_freq  # [rows, head_dim / 2]
        cos, sin = angle.cos() * self.scaling, angle.sin() * self.scaling
        return cos.to(dtype).unsqueeze(1), sin.to(dtype).unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [rows, heads, head_dim] by cos, sin [rows, 1, rotary_dim / 2]; the rest stays.

    The two halves of the rotary part are the two components (the "half" layout of transformers).
    """
    half = cos.size(-1)
    first, second = x[..., :half], x[..., half : 2 * half]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    if 2 * half < x.size(-1):
        out[..., 2 * half :] = x[..., 2 * half :]
    return out
