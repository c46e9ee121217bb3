"""Runs an operator or its reference on a case, and says whether the results agree.

Results made of numbers that are only moved or chosen are compared bit by bit. Computed floats may
err at most twice as much as the same computation in plain PyTorch at that dtype, both measured
against the reference in float64, and NaN and infinities must be in the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lazyllm_ext.ops import reference

from .builders import Arguments

# The floor of the rule: half an ulp of the largest result, since that has to be rounded once; and
# of the largest sum of absolute terms, what float32 logits of a few tens lose by their rounding.
HALF_ULP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LOGIT_ROUNDING = 16 * torch.finfo(torch.float32).eps


def has_cuda_kernels() -> bool:
    """Whether the loaded library was built with CUDA."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("lazyllm::aux_gather", "CUDA")


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() and has_cuda_kernels() else ["cpu"]


def marks_of(device: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.gpu] if device == "cuda" else []


def device_parameters() -> list[Any]:
    return [pytest.param(device, marks=marks_of(device)) for device in devices()]


def operator(name: str) -> Any:
    return getattr(torch.ops.lazyllm, name).default


def written(name: str) -> list[str]:
    """The arguments that the operator's schema says it changes."""
    schema = operator(name)._schema
    return [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]


def results(name: str, function: Any, arguments: Arguments) -> list[Tensor]:
    """What the function returns and all the memory of what it changes."""
    returned = function(*arguments.values())
    if isinstance(returned, Tensor):
        returned = [returned]
    changed = [whole_storage(arguments[argument]) for argument in written(name)]
    return [*(returned or ()), *changed]


def run(name: str, arguments: Arguments) -> list[Tensor]:
    return [result.cpu() for result in results(name, operator(name), arguments)]


def run_reference(name: str, arguments: Arguments) -> list[Tensor]:
    with one_thread():
        return results(name, getattr(reference, name), arguments)


@contextmanager
def one_thread() -> Iterator[None]:
    """For many small computations: waking threads for each takes far longer than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def whole_storage(tensor: Tensor) -> Tensor:
    """Also what lies between and around the elements of a view."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def in_float64(arguments: Arguments) -> Arguments:
    def wide(value: Any) -> Any:
        if isinstance(value, list):
            return [wide(each) for each in value]
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if is_float else value

    return {name: wide(value) for name, value in arguments.items()}


def assert_same_bits(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        differs = (bits(mine) != bits(theirs)).flatten().nonzero().flatten()
        assert not differs.numel(), (
            f"{differs.numel()} of {mine.numel()} elements differ, the first at "
            f"{int(differs[0])}: got {mine.flatten()[differs[0]]}, "
            f"expected {theirs.flatten()[differs[0]]}"
        )


def bits(tensor: Tensor) -> Tensor:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])


def assert_computed(name: str, got: Tensor, arguments: Arguments) -> None:
    """The rule of twice the error, against the reference on the arguments in float64."""
    arguments_64 = in_float64(arguments)
    (exact,) = run_reference(name, arguments_64)
    assert got.shape == exact.shape
    assert torch.equal(got.isnan(), exact.isnan()), "NaN in other places than in the reference"
    infinite = exact.isinf()
    assert torch.equal(got[infinite].double(), exact[infinite]), "infinities differ"
    assert not got[~infinite].isinf().any(), "infinite where the reference is not"
    finite = exact.isfinite()
    if not finite.any():
        return

    def error_of(result: Tensor, where: Tensor) -> float:
        return float((result.double()[where] - exact[where]).abs().max()) if where.any() else 0.0

    # PyTorch's attention spreads a NaN to rows that do not see it where it multiplies tiles (AMX).
    with one_thread():
        usable = COMPUTED[name](*arguments.values())
    plain = error_of(usable, finite & usable.isfinite())
    error = error_of(got, finite)
    if error <= 2 * plain:
        return
    floor = HALF_ULP[got.dtype] * float(exact[finite].abs().max())
    floor += LOGIT_ROUNDING * float(absolute_terms(name, arguments_64, exact)[finite].max())
    assert error <= floor, f"error {error:.3g}, plain {plain:.3g}, floor {floor:.3g}"


def absolute_terms(name: str, arguments_64: Arguments, exact: Tensor) -> Tensor:
    """The result's sum with absolute values: what its rounding errors are a part of."""
    if name == "lazy_attention":
        values = arguments_64["value_store"].abs()
        return run_reference(name, {**arguments_64, "value_store": values})[0]
    if name == "linear":
        absolute = {
            key: value if value is None else value.abs() for key, value in arguments_64.items()
        }
        return run_reference(name, absolute)[0]
    return exact


def plain_attention(
    query: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_store: Tensor,
    value_store: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Eager attention as models write it: every step rounded to the dtype, a mask of -inf."""
    output = torch.zeros(query.shape, dtype=query.dtype)
    group = query.shape[1] // key_store.shape[1]
    for b in range(query_offsets.numel() - 1):
        rows = slice(int(query_offsets[b]), int(query_offsets[b + 1]))
        mine = slice(int(key_offsets[b]), int(key_offsets[b + 1]))
        used = key_slots[mine] >= 0
        slots, index = key_slots[mine][used], key_index[mine][used]
        place = query_index[rows, None]
        visible = (index <= place) & ((index > place - window) | (window == 0))  # [rows, keys]
        keys = key_store[slots].repeat_interleave(group, dim=1).transpose(0, 1)  # [H, keys, D]
        values = value_store[slots].repeat_interleave(group, dim=1).transpose(0, 1)
        # A row that sees NaN or infinity is not compared; for the others 0 times it would be NaN.
        values = values.masked_fill(~values.isfinite(), 0.0)
        logits = query[rows].transpose(0, 1) @ keys.transpose(1, 2) * scale  # [H, rows, keys]
        if softcap > 0:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~visible, -torch.inf)
        weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
        weights = weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)
        output[rows] = (weights @ values).transpose(0, 1)
    return output


def plain_gate(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Two steps, each rounded."""
    if activation == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def plain_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """Normalization as models write it: in float32 up to the weight, then every step rounded."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * (offset + weight)


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding as models write it: every step rounded to the dtype."""
    half, cos, sin = cos.shape[1], cos[:, None], sin[:, None]
    rotary, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        rotary = torch.cat([rotary[..., 0::2], rotary[..., 1::2]], dim=-1)
    turned = torch.cat([-rotary[..., half:], rotary[..., :half]], dim=-1)
    return torch.cat([rotary * cos.repeat(1, 1, 2) + turned * sin.repeat(1, 1, 2), rest], dim=-1)


# The operators that compute floats: what PyTorch makes of it at the dtype of the arguments.
COMPUTED: dict[str, Callable[..., Tensor]] = {
    # Float32 throughout, whatever the queries and keys are: so is the reference.
    "token_importance": reference.token_importance,
    "lazy_attention": plain_attention,
    "linear": torch.nn.functional.linear,
    "rms_norm": plain_norm,
    "gated_activation": plain_gate,
    "rotate": plain_rotation,
}
