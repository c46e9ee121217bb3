"""One transformer block, taken apart where LazyLLM needs to stop between its parts."""

from typing import Optional, Tuple

from torch import Tensor, nn

from .modules import projection, rotate


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
        q_norm: Optional[nn.Module] = None,
        k_norm: Optional[nn.Module] = None,
        attention_out_norm: Optional[nn.Module] = None,
        mlp_out_norm: Optional[nn.Module] = None,
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
        self.q_norm = q_norm if q_norm is not None else nn.Identity()
        self.k_norm = k_norm if k_norm is not None else nn.Identity()
        self.attention_out_norm = (
            attention_out_norm if attention_out_norm is not None else nn.Identity()
        )
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.mlp_out_norm = mlp_out_norm if mlp_out_norm is not None else nn.Identity()
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

    def key_value(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tuple[Tensor, Tensor]:
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

    def forward(self, hidden: Tensor) -> Tensor:
        raise RuntimeError("LazyLayer: called as a whole; LazyDecoder.step runs it part by part")
