"""What a decoder calls of a model: its own modules, as they are or by their parts."""

from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from lazyllm_ext.decoder.modules import GatedMLP, RMSNorm, called, is_untouched

from .families import Family

# The parts of an MLP that a decoder may compute by itself.
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


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
        return super().forward(x) if is_untouched(norm) else called(norm, x)


class CalledNorm(nn.Module):
    """A model's own norm that has hooks, or another forward than its class's."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[…, dim] -> […, dim]."""
        return called(self.norm, x)


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
        return super().forward(x) if untouched else called(self.mlp, x)


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


def operator_activation(own: nn.Module) -> str:
    """What the operators call a model's own activation; empty where it has none."""
    for name, in_operator in (("silu", "silu"), ("gelu_pytorch_tanh", "gelu_tanh")):
        if type(own) is type(ACT2FN[name]):
            return in_operator
    return "silu" if type(own) is nn.SiLU else ""


class OwnModules:
    """Makes the modules of a decoder of a model's own ones, which are called as they are.

    Args:
        family: of the model.
    """

    def __init__(self, family: Family):
        self.family = family

    def linear(self, linear: nn.Module, name: str) -> nn.Module:
        """A projection, whatever its class."""
        return linear

    def norm(self, norm: nn.Module) -> nn.Module:
        """A norm of hidden states or of heads."""
        family = self.family
        if not family.norm_eps:
            return norm if is_untouched(norm) else CalledNorm(norm)
        return OwnNorm(norm, getattr(norm, family.norm_eps), family.norm_offset)

    def mlp(self, mlp: Any) -> nn.Module:
        """An MLP, or a mixture of experts."""
        return OwnMLP(mlp) if self.mlp_parts(mlp) == MLP_PARTS else CalledMLP(mlp)

    def embedding(self, embedding: nn.Module) -> nn.Module:
        """Token ids -> hidden states."""
        return embedding

    def mlp_parts(self, mlp: Any) -> set[str]:
        """Names of the modules that an MLP of the family's own class has."""
        if type(mlp) is not self.family.mlp:
            return set()
        return {name for name, _ in mlp.named_children()}
