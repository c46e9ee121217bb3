"""Projection and RMSNorm: a model's own parameters, by the fastest way that computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lazyllm_ext.decoder.modules import FEW_ROWS, GatedMLP, Projection, RMSNorm, or_identity

ROWS = (1, 3, FEW_ROWS, FEW_ROWS + 1)


def _exact(linear: nn.Linear, x: Tensor) -> Tensor:
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(x.double(), linear.weight.double(), bias)


@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_computes_what_the_linear_computes(rows: int, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(151, 40, bias=bias).to(dtype)
    x = torch.randn(rows, 151).to(dtype)
    got, exact = Projection(linear)(x), _exact(linear, x)
    assert got.dtype == dtype
    error = (got.double() - exact).abs().max()
    # Rounded once, after a sum in float32.
    assert error <= torch.finfo(dtype).eps * exact.abs().max() + 1e-6


@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
def test_hooks_and_replaced_forwards_run(rows: int) -> None:
    x, linear = torch.randn(rows, 8), nn.Linear(8, 8)
    projection, plain = Projection(linear), linear(x)
    handle = linear.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    torch.testing.assert_close(projection(x), linear(x))
    assert not torch.allclose(projection(x), plain)
    handle.remove()
    torch.testing.assert_close(projection(x), plain)
    weight, bias = linear.weight, linear.bias
    linear.forward = lambda x: -nn.functional.linear(x, weight, bias)  # type: ignore[method-assign]
    torch.testing.assert_close(projection(x), -plain)


@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
def test_a_transposed_weight(rows: int) -> None:
    linear = nn.Linear(8, 6)
    linear.weight = nn.Parameter(linear.weight.T.contiguous().T)
    x = torch.randn(rows, 8)
    torch.testing.assert_close(Projection(linear)(x), linear(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_rows_through_float32(dtype: torch.dtype) -> None:
    linear = nn.Linear(151, 40).to(dtype)
    projection = Projection(linear)
    projection.through_float = True  # also where the processor knows the dtype
    x = torch.randn(FEW_ROWS + 1, 151).to(dtype)
    exact = _exact(linear, x)
    error = (projection(x).double() - exact).abs().max()
    assert error <= torch.finfo(dtype).eps * exact.abs().max()


@torch.no_grad()
def test_few_rows_take_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    projection, calls = Projection(nn.Linear(8, 6)), []
    plain = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *a: calls.append(a) or plain(*a))
    projection(torch.randn(FEW_ROWS, 8))
    assert not calls
    projection(torch.randn(FEW_ROWS + 1, 8))
    assert len(calls) == 1


@torch.no_grad()
def test_a_weight_of_another_class_is_not_read() -> None:
    class Quantized(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is nn.functional.linear:
                return torch.zeros(len(args[0]), 8)
            return super().__torch_function__(function, types, args, kwargs)

    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(torch.randn(8, 8).as_subclass(Quantized), requires_grad=False)
    assert not Projection(linear)(torch.randn(1, 8)).any()


class TestRMSNorm:
    @pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
    @pytest.mark.parametrize("offset", [0.0, 1.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    @torch.no_grad()
    def test_any_layout_and_dtype(self, dtype: torch.dtype, offset: float) -> None:
        """Also what the operator does not take: gaps between elements, float64, another weight."""
        weight, x = torch.randn(24).to(dtype), torch.randn(3, 5, 24).to(dtype)
        norm = RMSNorm(nn.Parameter(weight), 1e-5, offset)
        exact = torch.rms_norm(x.double(), [24], weight.double() + offset, 1e-5)
        spread = torch.stack([weight, weight], 1)[:, 0]
        turned = x.transpose(0, 2).contiguous().transpose(0, 2)
        for one, of in (
            (norm, x),
            (norm, turned),
            (RMSNorm(nn.Parameter(spread), 1e-5, offset), x),
            (RMSNorm(nn.Parameter(weight.double()), 1e-5, offset), x),
        ):
            got = one(of)
            assert got.shape == x.shape
            error = (got.double() - exact).abs().max()
            eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # at best float32's
            assert error <= 2 * eps * exact.abs().max()

    def test_one_operator_on_the_cpu(self) -> None:
        norm, x = RMSNorm(nn.Parameter(torch.ones(8)), 1e-5), torch.randn(4, 8)
        with torch.no_grad(), torch.profiler.profile() as profile:
            norm(x)
        assert "lazyllm::rms_norm" in {event.name for event in profile.events()}


class TestGatedMLP:
    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    @torch.no_grad()
    def test_is_its_parts(self, dtype: torch.dtype, named: bool) -> None:
        """In the operator, where it takes the dtype and has the activation, and in two steps."""
        gate, up, down = (nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16))
        mlp = GatedMLP(gate, up, down, nn.SiLU(), "silu" if named else "").to(dtype)
        x = torch.randn(2200, 16).to(dtype)  # two blocks and more
        with torch.profiler.profile() as profile:
            got = mlp(x)
        wide = GatedMLP(gate, up, down, nn.SiLU()).double()
        error = (got.double() - wide(x.double())).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps
        used = "lazyllm::gated_activation" in {event.name for event in profile.events()}
        assert used == (named and dtype != torch.float64)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@torch.no_grad()
def test_scripts() -> None:
    projection = Projection(nn.Linear(16, 8))
    scripted = torch.jit.script(projection)
    for rows in ROWS:
        x = torch.randn(rows, 16)
        assert torch.equal(scripted(x), projection(x))


def test_a_module_of_length_0_is_a_module() -> None:
    empty = nn.Sequential()
    assert not empty
    assert or_identity(empty) is empty
    assert type(or_identity(None)) is nn.Identity
