"""Scriptable modules around a model's own parameters, for export."""

from torch import Tensor, nn

# The configuration's name of an activation -> a scriptable module that computes the same.
_ACTIVATIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
}


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)), SwiGLU or GeGLU by its activation."""

    def __init__(self, gate: nn.Module, up: nn.Module, down: nn.Module, activation: nn.Module):
        super().__init__()
        self.gate, self.up, self.down, self.activation = gate, up, down, activation

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        rows: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return rows


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


def activation(name: str) -> nn.Module:
    """The scriptable module of an activation that a configuration names.

    Raises:
        ValueError: there is none.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"export: activation: expected {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]
