"""One transformer block, taken apart where LazyLLM needs to stop between its parts."""

from typing import Any, Final

import torch
from torch import Tensor, nn

from .modules import (
    FEW_ROWS,
    GatedMLP,
    Projection,
    RMSNorm,
    is_plain,
    is_untouched,
    or_identity,
    projection,
    rotate,
)
from .rows import Keys, Stage, Tail, pick, rows_of_tail
from .rules import BoundaryRule
from .scoring import score

# Norms that a layer may have beside its two, in the order of `lazyllm::decoder_layer_`.
_MORE_NORMS = ("q_norm", "k_norm", "attention_out_norm", "mlp_out_norm")


class LazyLayer(nn.Module):
    """A decoder block around the model's own projections and MLP.

        x = x + r · attention_out_norm(o_proj(attention(input_norm(x))))
        x = x + r · mlp_out_norm(mlp(mlp_norm(x)))

    or, in a parallel one, both sums at once from the same x.

    Rows are packed: every tensor is [rows, …], whatever sequence a row belongs to.

    Args:
        input_norm, mlp_norm: norms before attention and MLP.
        q_proj, k_proj, v_proj, o_proj, mlp: the model's own modules, see `Projection`: adapters
            and quantized weights keep working. A Projection is taken as it is.
        q_norm, k_norm: norms of queries and keys, None for none.
        norm_at: what they get: each "head" ([rows, heads, head_dim]), "all" heads together
            ([rows, heads · head_dim]), or each head after it was "rotated".
        attention_out_norm, mlp_out_norm: norms of what is added to the residual, None for none.
        num_heads, num_kv_heads, head_dim: of the attention; query head h reads key head
            h // (num_heads / num_kv_heads).
        scale: factor on the logits, usually head_dim ** -0.5.
        window: sliding window in tokens, the token itself included; 0: full attention.
        softcap: logits become softcap · tanh(logits / softcap); 0: none.
        rope: which of the decoder's rotary embeddings this layer uses.
        interleaved: neighbours are rotated together, see `lazyllm_ext.ops.rotate`.
        parallel: attention and MLP both read the layer's input.
        residual_scale: the factor r.
    """

    # Constants: a scripted layer compiles what it is made for, and nothing else.
    one_call: Final[bool]
    norms_heads: Final[bool]
    norms_attention_out: Final[bool]
    norms_mlp_out: Final[bool]

    def __init__(
        self,
        *,
        input_norm: nn.Module,
        q_proj: nn.Module,
        k_proj: nn.Module,
        v_proj: nn.Module,
        o_proj: nn.Module,
        mlp: nn.Module,
        mlp_norm: nn.Module,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        scale: float,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        attention_out_norm: nn.Module | None = None,
        mlp_out_norm: nn.Module | None = None,
        window: int = 0,
        softcap: float = 0.0,
        rope: int = 0,
        norm_at: str = "head",
        interleaved: bool = False,
        parallel: bool = False,
        residual_scale: float = 1.0,
    ):
        super().__init__()
        self.input_norm = input_norm
        self.q_proj, self.k_proj = projection(q_proj), projection(k_proj)
        self.v_proj, self.o_proj = projection(v_proj), projection(o_proj)
        self.q_norm, self.k_norm = or_identity(q_norm), or_identity(k_norm)
        self.attention_out_norm = or_identity(attention_out_norm)
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.mlp_out_norm = or_identity(mlp_out_norm)
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.scale, self.window, self.softcap, self.rope = scale, window, softcap, rope
        self.interleaved, self.parallel = interleaved, parallel
        self.residual_scale = residual_scale
        if norm_at not in ("head", "all", "rotated"):
            raise ValueError(f"norm_at: expected head, all or rotated, got {norm_at!r}")
        # An identity that is called takes its time, too, for each token in each layer.
        normed = norm_at if q_norm is not None or k_norm is not None else ""
        self.norms_heads, self.norms_all = normed == "head", normed == "all"
        self.norms_rotated = normed == "rotated"
        self.norms_attention_out = attention_out_norm is not None
        self.norms_mlp_out = mlp_out_norm is not None
        self.few_rows = FEW_ROWS  # TorchScript sees no globals
        self.one_call = self._fits_one_call()
        self.eps, self.offset = getattr(input_norm, "eps", 0.0), getattr(input_norm, "offset", 0.0)
        self.operator_activation = getattr(mlp, "operator_activation", "")

    def key_value(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Normed rows [rows, hidden] -> rotated keys and values [rows, num_kv_heads, head_dim]."""
        key = self.k_proj(x)
        if self.norms_all:
            key = self.k_norm(key)
        key = key.view(-1, self.num_kv_heads, self.head_dim)
        value = self.v_proj(x).view(-1, self.num_kv_heads, self.head_dim)
        if self.norms_rotated:
            return self.k_norm(rotate(key, cos, sin, self.interleaved)), value
        if self.norms_heads:
            key = self.k_norm(key)
        return rotate(key, cos, sin, self.interleaved), value

    def query(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Normed rows [rows, hidden] -> rotated queries [rows, num_heads, head_dim]."""
        query = self.q_proj(x)
        if self.norms_all:
            query = self.q_norm(query)
        query = query.view(-1, self.num_heads, self.head_dim)
        if self.norms_rotated:
            rotated: Tensor = self.q_norm(rotate(query, cos, sin, self.interleaved))
            return rotated
        if self.norms_heads:
            query = self.q_norm(query)
        return rotate(query, cos, sin, self.interleaved)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Residual rows [rows, hidden] and what their heads attended to -> the layer's output."""
        added = self.o_proj(attended.reshape(-1, self.num_heads * self.head_dim))
        if self.norms_attention_out:
            added = self.attention_out_norm(added)
        if self.residual_scale != 1.0:
            added = added * self.residual_scale
        if self.parallel:
            hidden, x = hidden + added, hidden
        else:
            hidden = x = hidden + added
        added = self.mlp(self.mlp_norm(x))
        if self.norms_mlp_out:
            added = self.mlp_out_norm(added)
        if self.residual_scale != 1.0:
            added = added * self.residual_scale
        return hidden + added

    def _fits_one_call(self) -> bool:
        """Whether `lazyllm::decoder_layer_` computes what the layer is made of."""
        mlp = self.mlp
        if not isinstance(mlp, GatedMLP) or not mlp.operator_activation:
            return False
        projections = [self.q_proj, self.k_proj, self.v_proj, self.o_proj]
        inner = [mlp.gate, mlp.up, mlp.down]
        children = self._modules
        self.more_norms = [name for name in _MORE_NORMS if type(children[name]) is not nn.Identity]
        norms: list[Any] = [self.input_norm, self.mlp_norm]
        norms += [children[name] for name in self.more_norms]
        return (
            all(isinstance(norm, RMSNorm) for norm in norms)
            and len({(norm.eps, norm.offset) for norm in norms}) == 1
            and type(self.q_norm) is type(self.k_norm)
            and not (self.norms_all or self.norms_rotated or self.parallel)
            and self.residual_scale == 1.0
            and all(type(projection) is Projection for projection in projections + inner)
            and all(getattr(projection.linear, "bias", None) is None for projection in inner)
        )

    def whole_layer(self, hidden: Tensor, stage: Stage, keys: Tensor, values: Tensor) -> Tensor:
        """Compute a layer that is no boundary, for all rows: [rows, hidden] -> the same.

        Args:
            keys, values: the layer's stores [slots, num_kv_heads, head_dim], to which the rows' own
                are appended; as in the functions below.
        """
        finished = self._in_one_call(hidden, stage, keys, values)
        if finished is not None:
            return finished
        x = self.input_norm(hidden)
        self.append_keys_(x, stage, keys, values)
        return self.attend_and_finish(hidden, x, stage, stage.keys, keys, values)

    def append_keys_(self, x: Tensor, stage: Stage, keys: Tensor, values: Tensor) -> None:
        """Compute and store the keys and values of normed rows x [rows, hidden]."""
        key, value = self.key_value(x, stage.cos[self.rope], stage.sin[self.rope])
        torch.ops.lazyllm.kv_append_(keys, values, stage.slots, key, value)

    def importance(
        self, x: Tensor, stage: Stage, window: Tail, keys: Tensor, rule: BoundaryRule
    ) -> Tensor:
        """Attention that the window's queries give to each active token: [K] float32, see `score`.

        Args:
            x: the normed rows [rows, hidden].
            window: which of them ask.
        """
        where = rows_of_tail(window, stage.rows)
        queries = self.query(
            x.index_select(0, where),
            stage.cos[self.rope].index_select(0, where),
            stage.sin[self.rope].index_select(0, where),
        )
        rows = pick(stage.rows, where, window)
        return score(queries, rows, keys, stage.keys, self.scale, self.softcap, rule)

    def attend_and_finish(
        self, hidden: Tensor, x: Tensor, stage: Stage, seen: Keys, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Queries, attention, output projection and MLP of rows whose keys and values are stored.

        Args:
            hidden, x: the rows [rows, hidden], and the same normed.
            seen: the active tokens that they attend to.
        """
        attended = torch.ops.lazyllm.lazy_attention(
            self.query(x, stage.cos[self.rope], stage.sin[self.rope]),
            stage.rows.index,
            stage.rows.offsets,
            keys,
            values,
            seen.slots,
            seen.index,
            seen.offsets,
            self.scale,
            self.window,
            self.softcap,
        )
        return self.finish(hidden, attended)

    def _in_one_call(
        self, hidden: Tensor, stage: Stage, keys: Tensor, values: Tensor
    ) -> Tensor | None:
        """`whole_layer` of a few rows by one operator.

        None, and nothing done, where one call cannot do it: for many rows, on a GPU, and where the
        layer is made otherwise or was changed since.
        """
        if self.one_call and hidden.is_cpu and hidden.size(0) <= self.few_rows:
            if torch.jit.is_scripting():
                weights, optional = self._parameters_of_call()
            else:
                weights, optional = self._plain_parameters()
            if len(weights) > 0 and _fit(hidden, weights, optional):
                output: Tensor = torch.ops.lazyllm.decoder_layer_(
                    hidden,
                    keys,
                    values,
                    stage.slots,
                    stage.rows.index,
                    stage.rows.offsets,
                    stage.keys.slots,
                    stage.keys.index,
                    stage.keys.offsets,
                    stage.cos[self.rope],
                    stage.sin[self.rope],
                    weights,
                    optional,
                    self.eps,
                    self.offset,
                    self.scale,
                    self.window,
                    self.softcap,
                    self.interleaved,
                    self.operator_activation,
                )
                return output
        return None

    def _parameters_of_call(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The weights, and those that may be missing, in the operator's order."""
        weights: list[Tensor] = []
        optional: list[Tensor | None] = []
        if self.one_call:
            q, k, v = self.q_proj.linear, self.k_proj.linear, self.v_proj.linear
            o = self.o_proj.linear
            norm, mlp_norm = self.input_norm.weight, self.mlp_norm.weight
            weights = torch.jit.annotate(
                list[Tensor], [norm, q.weight, k.weight, v.weight, o.weight, mlp_norm]
            )
            weights.extend(self.mlp.weights())
            optional = torch.jit.annotate(
                list[Tensor | None], [q.bias, k.bias, v.bias, o.bias, None, None, None, None]
            )
            if self.norms_heads:
                optional[4] = torch.jit.annotate(Tensor, self.q_norm.weight)
                optional[5] = torch.jit.annotate(Tensor, self.k_norm.weight)
            if self.norms_attention_out:
                optional[6] = torch.jit.annotate(Tensor, self.attention_out_norm.weight)
            if self.norms_mlp_out:
                optional[7] = torch.jit.annotate(Tensor, self.mlp_out_norm.weight)
        return weights, optional

    @torch.jit.unused
    def _plain_parameters(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The same outside TorchScript, where parts may have been changed; then empty lists."""
        if torch.compiler.is_exporting():
            return self._parameters_of_call()
        # Looked up in the tables themselves: an attribute of a module takes a microsecond.
        own, mlp = self._modules, self._modules["mlp"]
        if not isinstance(mlp, GatedMLP) or not mlp.untouched():
            return [], []
        projections = [own[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        projections += [mlp._modules[name] for name in ("gate", "up", "down")]
        linears: list[Any] = []
        for each in projections:
            if type(each) is not Projection or not is_untouched(each):
                return [], []
            linears.append(each._modules["linear"])
        norms: list[Any] = [own[name] for name in ("input_norm", "mlp_norm", *self.more_norms)]
        if not all(isinstance(norm, RMSNorm) and norm.untouched() for norm in norms):
            return [], []
        if not all(map(is_plain, linears)):
            return [], []
        scales: list[Any] = [norm._parameters["weight"] for norm in norms]
        weights = [scales[0], *(linear._parameters["weight"] for linear in linears)]
        weights.insert(5, scales[1])
        biases = [linear._parameters["bias"] for linear in linears]
        if biases[4:] != [None, None, None]:
            return [], []
        optional: list[Tensor | None] = [*biases[:4], None, None, None, None]
        for scale, name in zip(scales[2:], self.more_norms, strict=True):
            optional[4 + _MORE_NORMS.index(name)] = scale
        return weights, optional

    def forward(self, hidden: Tensor) -> Tensor:
        raise RuntimeError("LazyLayer: called as a whole; LazyDecoder.step runs it part by part")


def _fit(hidden: Tensor, weights: list[Tensor], optional: list[Tensor | None]) -> bool:
    """Whether dtypes and strides are those that `lazyllm::decoder_layer_` takes."""
    if hidden.stride(1) != 1:
        return False
    for weight in weights:
        if weight.dtype != hidden.dtype or weight.stride(-1) != 1:
            return False
    for other in optional:
        if other is not None and (other.dtype != hidden.dtype or other.stride(0) != 1):
            return False
    return True
