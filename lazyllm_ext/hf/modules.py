"""Modules around a model's own modules and parameters, scriptable ones for export."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from lazyllm_ext.decoder.modules import is_plain, is_untouched, projection

# The configuration's name of an activation -> a scriptable module that computes the same.
_ACTIVATIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
}


class OwnForward:
    """What stands in for a forward on an instance, with the signature that others look at."""

    def __init__(self, method: Callable[..., Any], original: Callable[..., Any]):
        self.method = method
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)), SwiGLU or GeGLU by its activation.

    On the CPU many rows go through in blocks, whose intermediate values stay in the caches.
    """

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module, activation: nn.Module):
        super().__init__()
        self.block_rows = 1024  # measured: 0.75 of the time of 4,096 rows at once
        self.gate, self.up, self.down = projection(gate), projection(up), projection(down)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        in_blocks = x.is_cpu and x.size(0) > self.block_rows
        if in_blocks and not torch.jit.is_scripting():
            # Hooks and modules of other classes see all rows at once.
            in_blocks = all(map(is_plain, [self.gate.linear, self.up.linear, self.down.linear]))
        if not in_blocks:
            return self._block(x)
        out = torch.empty_like(x)
        for first in range(0, x.size(0), self.block_rows):
            last = min(first + self.block_rows, x.size(0))
            out[first:last] = self._block(x[first:last])
        return out

    def _block(self, x: Tensor) -> Tensor:
        rows: Tensor = self.down(self.activation(self.gate(x)).mul_(self.up(x)))
        return rows


class OwnMLP(nn.Module):
    """A model's own MLP by its parts, of which few rows are fast; as a whole where it has hooks."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.mlp: nn.Module = mlp
        self.parts = GatedMLP(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        mlp, parts = self.mlp, self.parts
        untouched = is_untouched(mlp) and is_untouched(parts.activation)
        # Nobody else knows of the parts, so that there is no hook to be called.
        rows: Tensor = parts.forward(x) if untouched else mlp(x)
        return rows


class CalledMLP(nn.Module):
    """A model's own MLP or mixture of experts, called as transformers does: with a batch."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        rows = self.mlp(x.unsqueeze(0))
        if isinstance(rows, tuple):  # experts may say which of them they chose, too
            rows = rows[0]
        batch: Tensor = rows
        return batch.view(x.shape)


class ScaledEmbedding(nn.Module):
    """Token embeddings times a factor, which is rounded to the weight's dtype as Gemma does."""

    scale: Tensor

    def __init__(self, weight: nn.Parameter, scale: Tensor):
        super().__init__()
        self.weight = weight
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[rows] int64 -> [rows, hidden]."""
        return nn.functional.embedding(ids, self.weight) * self.scale.to(self.weight.dtype)


def activation(own: nn.Module) -> nn.Module:
    """The scriptable module that computes what a model's own activation does.

    Raises:
        ValueError: there is none.
    """
    for name, scriptable in _ACTIVATIONS.items():
        if type(own) is type(ACT2FN[name]):
            return scriptable
    raise ValueError(
        f"export: activation: expected {', '.join(_ACTIVATIONS)}, got {type(own).__name__}"
    )
