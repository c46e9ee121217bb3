"""Small modules around a model's own parameters, for what the decoder computes itself."""

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

    @torch.jit.unused
    def untouched(self) -> bool:
        """Whether calling it computes what this class says, and nothing else."""
        return type(self) is RMSNorm and is_untouched(self)

    def forward(self, x: Tensor) -> Tensor:
        """[…, dim] -> […, dim]."""
        # PyTorch computes it in several kernels on the CPU, of which a compiler makes one.
        in_one_pass = x.is_cpu and x.dtype == self.weight.dtype and x.dtype != torch.float64
        in_one_pass = in_one_pass and x.stride(-1) == 1 and self.weight.stride(0) == 1
        if in_one_pass and not _is_compiled():
            rows = x.reshape(-1, x.size(-1))
            normed: Tensor = torch.ops.lazyllm.rms_norm(rows, self.weight, self.eps, self.offset)
            return normed.view(x.shape)
        if self.offset == 0.0:
            return torch.rms_norm(x, [x.size(-1)], self.weight, self.eps)
        # The sum is taken in float32: 1 + w of a bfloat16 weight would lose w's last bits.
        scaled = torch.rms_norm(
            x.float(), [x.size(-1)], self.weight.float() + self.offset, self.eps
        )
        return scaled.to(x.dtype)


# Up to so many rows the operator beats a library for matrix products on the CPU (measured: by a
# factor of 1.6 to 6 with MKL on AVX2, most with 2 to 4 rows).
FEW_ROWS = 64


class Projection(nn.Module):
    """A model's own projection: called, never read, unless it is a plain nn.Linear on the CPU.

    Then a few rows go through `lazyllm::linear`, which reads the weights at the speed of the
    memory, and many rows of a half precision that the processor cannot multiply go through float32.
    Adapters, quantized weights, hooks and replaced forwards are no plain nn.Linear.

    Args:
        linear: the module, shared and not copied.
    """

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear
        self.few_rows = FEW_ROWS  # TorchScript sees no globals
        self.through_float = is_plain(linear) and _multiplies_slowly(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if torch.jit.is_scripting():
            return self._plain(x)
        return self._called(x)

    @torch.jit.unused
    def _called(self, x: Tensor) -> Tensor:
        """`forward` outside TorchScript, where the linear may have been changed."""
        # A tracer puts parameters of its own in place; what is exported has been checked.
        plain = torch.compiler.is_exporting() or is_plain(self.linear)
        return self._plain(x) if plain else self._part(called(self.linear, x))

    def _plain(self, x: Tensor) -> Tensor:
        """The outputs of a plain nn.Linear."""
        return self._multiply(x, self.linear.weight, self.linear.bias)

    def _part(self, outputs: Tensor) -> Tensor:
        """What is meant of all outputs [rows, out] of any other module."""
        return outputs

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.is_cpu and x.size(0) <= self.few_rows and weight.stride(1) == 1:
            few: Tensor = torch.ops.lazyllm.linear(x, weight, bias)
            return few
        if x.is_cpu and self.through_float:
            wide = nn.functional.linear(
                x.float(), weight.float(), None if bias is None else bias.float()
            )
            return wide.to(x.dtype)
        return nn.functional.linear(x, weight, bias)


class PartOfProjection(Projection):
    """Some of the outputs of a projection: the queries, keys or values of a fused one.

    A plain nn.Linear computes no others. Any other module is called as a whole.

    Args:
        linear: the module, whose outputs are `groups` groups of equal size.
        groups: how many.
        first, last: the outputs of each group that are meant, first … last - 1.
    """

    def __init__(self, linear: nn.Module, groups: int, first: int, last: int):
        super().__init__(linear)
        self.groups, self.first, self.last = groups, first, last

    def weight(self) -> Tensor:
        """[outputs that are meant, in], of a plain nn.Linear."""
        return self._of_parameter(self.linear.weight)

    def _plain(self, x: Tensor) -> Tensor:
        bias: Tensor | None = self.linear.bias
        if bias is not None:
            bias = self._of_parameter(bias)
        return self._multiply(x, self.weight(), bias)

    def _part(self, outputs: Tensor) -> Tensor:
        grouped = outputs.view(outputs.size(0), self.groups, -1)
        return grouped[:, :, self.first : self.last].reshape(outputs.size(0), -1)

    def _of_parameter(self, parameter: Tensor) -> Tensor:
        """What is meant of a weight [out, in] or a bias [out]; a view if there is one group."""
        grouped = parameter.unflatten(0, [self.groups, -1])
        return grouped[:, self.first : self.last].flatten(0, 1)


def projection(module: nn.Module) -> Projection:
    """The module as a Projection, which it may be already."""
    return module if isinstance(module, Projection) else Projection(module)


def or_identity(module: nn.Module | None) -> nn.Module:
    """The module, whatever its truth value is, or one that does nothing."""
    return nn.Identity() if module is None else module


def called(module: nn.Module, x: Tensor) -> Tensor:
    """A module of somebody's own on rows [rows, …], called with a batch as transformers does.

    So a hook finds tokens and values where it looks for them. The batch is one: rows of several
    sequences stand one after another.
    """
    rows: Tensor = module(x.unsqueeze(0))
    return rows.squeeze(0)


def is_untouched(module: nn.Module) -> bool:
    """Whether calling the module runs the forward of its class and nothing else."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "forward" not in module.__dict__


def is_plain(linear: nn.Module) -> bool:
    """Whether a module computes x · weight^T + bias with weights as they are stored."""
    return (
        type(linear) is nn.Linear
        # Quantized weights are of a class of their own.
        and type(linear._parameters.get("weight")) is nn.Parameter
        and is_untouched(linear)
    )


def _is_compiled() -> bool:
    """Whether a compiler reads this, which makes one pass of what PyTorch computes in several."""
    compiled = False
    if not torch.jit.is_scripting():
        compiled = torch.compiler.is_exporting()
    return compiled


def _multiplies_slowly(weight: Tensor) -> bool:
    """Whether matrix products of this dtype take a slow way on this processor."""
    if not weight.is_cpu or weight.dtype == torch.float32:
        return False
    if not torch.backends.mkldnn.is_available():
        return True
    if weight.dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if weight.dtype == torch.float16:
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return False


class GatedMLP(nn.Module):
    """down(activation(gate(x)) · up(x)), SwiGLU or GeGLU by its activation.

    On the CPU many rows go through in blocks, whose intermediate values stay in the caches.

    Args:
        gate, up, down: the projections, see `Projection`.
        activation: of the gate.
        operator_activation: what the operators call it; empty where they have none.
    """

    def __init__(
        self,
        gate: nn.Module,
        up: nn.Module,
        down: nn.Module,
        activation: nn.Module,
        operator_activation: str = "",
    ):
        super().__init__()
        # Of float32, and twice as many of half precisions. Measured: 0.75 of the time of 4,096 rows
        # at once (AVX2); with 2,048 rows of bfloat16 0.74 to 0.86 of that with 1,024 (AMX).
        self.block_rows = 1024
        self.gate, self.up, self.down = projection(gate), projection(up), projection(down)
        self.activation = activation
        self.operator_activation = operator_activation

    def weights(self) -> list[Tensor]:
        """Those of gate, up and down, where these are nn.Linear."""
        linears = self.gate.linear, self.up.linear, self.down.linear
        return torch.jit.annotate(list[Tensor], [linear.weight for linear in linears])

    @torch.jit.unused
    def untouched(self) -> bool:
        """Whether calling it computes what its class says, and nothing else."""
        return is_untouched(self)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, hidden]."""
        block = self.block_rows * 4 // x.element_size()
        in_blocks = x.is_cpu and x.size(0) > block
        if in_blocks and not torch.jit.is_scripting():
            # Hooks and modules of other classes see all rows at once.
            in_blocks = all(map(is_plain, [self.gate.linear, self.up.linear, self.down.linear]))
        if not in_blocks:
            return self._block(x)
        out = torch.empty_like(x)
        for first in range(0, x.size(0), block):
            last = min(first + block, x.size(0))
            out[first:last] = self._block(x[first:last])
        return out

    def _block(self, x: Tensor) -> Tensor:
        rows: Tensor = self.down(self._open(self.gate(x), self.up(x)))
        return rows

    def _open(self, gate: Tensor, up: Tensor) -> Tensor:
        """activation(gate) · up; gate may be overwritten."""
        in_one_pass = self.operator_activation != "" and gate.is_cpu and gate.dtype == up.dtype
        in_one_pass = in_one_pass and gate.dtype != torch.float64
        in_one_pass = in_one_pass and gate.stride(-1) == 1 and up.stride(-1) == 1
        if in_one_pass and not _is_compiled():
            opened: Tensor = torch.ops.lazyllm.gated_activation(gate, up, self.operator_activation)
            return opened
        product: Tensor = self.activation(gate).mul_(up)
        return product


class Rotary(nn.Module):
    """Rotary position embedding with fixed frequencies.

    Args:
        inv_freq: [rotary_dim / 2], the model's own buffer, used as float32.
        scaling: factor on cos and sin (transformers' `attention_scaling`).
    """

    inv_freq: Tensor

    def __init__(self, inv_freq: Tensor, scaling: float = 1.0):
        super().__init__()
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.scaling = scaling

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [rows] int64 -> cos, sin [rows, rotary_dim / 2] in `dtype`."""
        angle = positions.float().unsqueeze(1) * self.inv_freq.float()  # [rows, rotary_dim / 2]
        cos, sin = angle.cos() * self.scaling, angle.sin() * self.scaling
        return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """`lazyllm::rotate`: [rows, heads, head_dim] by cos, sin [rows, rotary_dim / 2]."""
    if cos.size(1) == 0:  # a layer without rotary embedding
        return x
    rotated: Tensor = torch.ops.lazyllm.rotate(x, cos, sin, interleaved)
    return rotated
