"""What export makes of a model's modules: scriptable ones around the same parameters."""

from typing import Any, TypeVar

from torch import Tensor, nn
from transformers.activations import ACT2FN

from lazyllm_ext.decoder import RMSNorm
from lazyllm_ext.decoder.modules import GatedMLP, PartOfProjection, is_untouched

from .modules import MLP_PARTS, OwnModules, operator_activation

# The configuration's name of an activation -> a scriptable module that computes the same.
_ACTIVATIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
}
_FUSED_MLP_PARTS = {"gate_up_proj", "down_proj", "activation_fn"}

Module = TypeVar("Module", bound=nn.Module)


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


class ExportableModules(OwnModules):
    """Makes scriptable modules; what has none is refused by name.

    Every method raises a ValueError for a module of another class than the one that it can stand
    in for, or one that has hooks.
    """

    def linear(self, linear: Any, name: str) -> nn.Linear:
        """A projection of plain weights."""
        hint = "; merge adapters first, and use weights that are not quantized"
        return _own(linear, nn.Linear, name, hint)

    def norm(self, norm: Any) -> nn.Module:
        """An RMSNorm or a LayerNorm."""
        family = self.family
        if family.norm_eps:
            _check_untouched(norm, "norm")
            return RMSNorm(norm.weight, getattr(norm, family.norm_eps), family.norm_offset)
        return _own(norm, nn.LayerNorm, "norm")

    def mlp(self, mlp: Any) -> nn.Module:
        """A gated MLP, of separate projections or of one for gate and up."""
        parts = self.mlp_parts(mlp)
        gate: nn.Module
        up: nn.Module
        if parts == MLP_PARTS:
            gate, up = self.linear(mlp.gate_proj, "gate_proj"), self.linear(mlp.up_proj, "up_proj")
            called = mlp.act_fn
        elif parts == _FUSED_MLP_PARTS:
            both = self.linear(mlp.gate_up_proj, "gate_up_proj")
            half = both.out_features // 2
            gate, up = PartOfProjection(both, 1, 0, half), PartOfProjection(both, 1, half, 2 * half)
            called = mlp.activation_fn
        else:
            raise ValueError(
                f"export: mlp: expected a gated MLP ({', '.join(sorted(MLP_PARTS))}) of the "
                f"family's own class, got {type(mlp).__name__}"
            )
        _check_untouched(mlp, "mlp")
        _check_untouched(called, "activation")
        down = self.linear(mlp.down_proj, "down_proj")
        return GatedMLP(gate, up, down, _activation(called), operator_activation(called))

    def embedding(self, embedding: Any) -> nn.Module:
        """An embedding, with the scale that it may have."""
        plain = _own(embedding, self.family.embedding, "embed_tokens")
        scale = getattr(embedding, "embed_scale", None)
        return plain if scale is None else ScaledEmbedding(embedding.weight, scale)


def _own(module: Any, expected: type[Module], name: str, hint: str = "") -> Module:
    """The module, if it is exactly of the class that export can stand in for."""
    if type(module) is not expected:
        raise ValueError(
            f"export: {name}: expected {expected.__name__}, got {type(module).__name__}{hint}"
        )
    _check_untouched(module, name)
    own: Module = module
    return own


def _check_untouched(module: nn.Module, name: str) -> None:
    if not is_untouched(module):
        raise ValueError(f"export: {name}: expected no hook and the forward of its class")


def _activation(own: nn.Module) -> nn.Module:
    """The scriptable module that computes what a model's own activation does."""
    for name, scriptable in _ACTIVATIONS.items():
        if type(own) is type(ACT2FN[name]):
            return scriptable
    raise ValueError(
        f"export: activation: expected {', '.join(_ACTIVATIONS)}, got {type(own).__name__}"
    )
