"""One transformer block, taken apart where LazyLLM needs to stop between its parts."""

from typing import Optional, Tuple

from torch import Tensor, nn

from .modules import Projection, rotate


class LazyLayer(nn.Module):
    """A decoder block around the model's own projections and MLP.

        x = x + attention_out_norm(o_proj(attention(input_norm(x))))
        x = x + mlp_out_norm(mlp(mlp_norm(x)))

    Rows are packed: every tensor is [rows, …], whatever sequence a row belongs to.

    Args:
        input_norm, mlp_norm: norms before attention and MLP.
        q_proj, k_proj, v_proj, o_proj, mlp: the model's own modules, see `Projection`: adapters
            and quantized weights keep working.
        q_norm, k_norm: norms of each head ([rows, heads, head_dim]), None for none.
        attention_out_norm, mlp_out_norm: norms of what is added to the residual, None for none.
        num_heads, num_kv_heads, head_dim: of the attention; query head h reads key head
            h // (num_heads / num_kv_heads).
        scale: factor on the logits, usually head_dim ** -0.5.
        window: sliding window in tokens, the token itself included; 0: full attention.
        softcap: logits become softcap · tanh(logits / softcap); 0: none.
        rope: which of the decoder's rotary embeddings this layer uses.
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
    ):
        super().__init__()
        self.input_norm = input_norm
        self.q_proj, self.k_proj = Projection(q_proj), Projection(k_proj)
        self.v_proj, self.o_proj = Projection(v_proj), Projection(o_proj)
        self.q_norm = q_norm if q_norm is not None else nn.Identity()
        self.k_norm = k_norm if k_norm is not None else nn.Identity()
        self.attention_out_norm = (
            attention_out_norm if attention_out_norm is not None else nn.Identity()
        )
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.mlp_out_norm = mlp_out_norm if mlp_out_norm is not None else nn.Identity()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.scale, self.window, self.softcap, self.rope = scale, window, softcap, rope

    def key_value(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tuple[Tensor, Tensor]:
        """Normed rows [rows, hidden] -> rotated keys and values [rows, num_kv_heads, head_dim]."""
        key = self.k_norm(self.k_proj(x).view(-1, self.num_kv_heads, self.head_dim))
        value = self.v_proj(x).view(-1, self.num_kv_heads, self.head_dim)
        return rotate(key, cos, sin), value

    def query(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Normed rows [rows, hidden] -> rotated queries [rows, num_heads, head_dim]."""
        query = self.q_norm(self.q_proj(x).view(-1, self.num_heads, self.head_dim))
        return rotate(query, cos, sin)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Residual rows [rows, hidden] and what their heads attended to -> the layer's output."""
        projected = self.o_proj(attended.reshape(-1, self.num_heads * self.head_dim))
        hidden = hidden + self.attention_out_norm(projected)
        return hidden + self.mlp_out_norm(self.mlp(self.mlp_norm(hidden)))

    def forward(self, hidden: Tensor) -> Tensor:
        raise RuntimeError("LazyLayer: called as a whole; LazyDecoder.step runs it part by part")
