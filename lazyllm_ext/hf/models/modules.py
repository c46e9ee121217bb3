"""Modules around a model's own modules and parameters, scriptable ones for export."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from lazyllm_ext.decoder.modules import GatedMLP, RMSNorm, is_untouched

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


class OwnNorm(RMSNorm):
    """A model's own RMSNorm by its weight; as it is called where it has hooks."""

    def __init__(self, norm: Any, eps: float, offset: float):
        super().__init__(norm.weight, eps, offset)
        self.norm: nn.Module = norm

    def untouched(self) -> bool:
        """Whether the weight may stand for the whole."""
        return is_untouched(self) and is_untouched(self._modules["norm"])

    def forward(self, x: Tensor) -> Tensor:
        """[…, dim] -> […, dim]."""
        norm: Any = self._modules["norm"]
        normed: Tensor = super().forward(x) if is_untouched(norm) else norm(x)
        return normed


class OwnMLP(GatedMLP):
    """A model's own MLP by its parts, of which few rows are fast; as a whole where it has hooks."""

    def __init__(self, mlp: Any):
        own = mlp.act_fn
        super().__init__(mlp.gate_proj, mlp.up_proj, mlp.down_proj, own, operator_activation(own))
        self.mlp: nn.Module = mlp

    def untouched(self) -> bool:
        """Whether the parts may be computed in the place of the whole."""
        return super().untouched() and is_untouched(self.mlp) and is_untouched(self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        untouched = is_untouched(self.mlp) and is_untouched(self.activation)
        rows: Tensor = super().forward(x) if untouched else self.mlp(x)
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


def operator_activation(own: nn.Module) -> str:
    """What the operators call a model's own activation; empty where it has none."""
    for name, in_operator in (("silu", "silu"), ("gelu_pytorch_tanh", "gelu_tanh")):
        if type(own) is type(ACT2FN[name]):
            return in_operator
    return "silu" if type(own) is nn.SiLU else ""


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
