"""The operator that is a whole decoder layer."""

from __future__ import annotations

from torch import Tensor

from .calling import call


def decoder_layer_(
    hidden: Tensor,
    key_store: Tensor,
    value_store: Tensor,
    slots: Tensor,
    query_index: Tensor,
    query_offsets: Tensor,
    key_slots: Tensor,
    key_index: Tensor,
    key_offsets: Tensor,
    cos: Tensor,
    sin: Tensor,
    weights: list[Tensor],
    optional: list[Tensor | None],
    eps: float,
    offset: float,
    scale: float,
    window: int,
    softcap: float,
    interleaved: bool,
    activation: str,
) -> Tensor:
    """A decoder layer of the Llama shape for few rows, in one call. CPU only.

    Norm, projections, rotary embedding, `kv_append_`, `lazy_attention`, and the gated MLP, with the
    residual added after each half. It rounds where its parts would, and saves a step of decoding
    what stands between them: sixteen calls of operators, their results, and Python.

    Args:
        hidden: [R, C] float, the rows that enter the layer; stays as it is.
        key_store, value_store: [slots, Hkv, D] of its dtype, changed in place.
        slots: [R] int64, where the rows' keys and values go; -1: nowhere.
        query_index, query_offsets, key_slots, key_index, key_offsets: int64, as in
            `lazy_attention`.
        cos, sin: [R, half], as in `rotate`.
        weights: input norm [C]; q [H · D, C], k, v [Hkv · D, C], o [C, H · D]; norm of the MLP [C];
            gate, up [I, C], down [C, I].
        optional: eight, each of which may be None: biases of q, k, v, o; norms of queries and keys
            [D], head by head before they are rotated; norms [C] of what attention and MLP add.
        eps, offset: of all norms, as in `rms_norm`.
        scale, window, softcap: as in `lazy_attention`.
        interleaved: as in `rotate`.
        activation: of the gate, "silu" or "gelu_tanh".

    Returns:
        [R, C] of the dtype of `hidden`, contiguous. A row whose `query_index` is -1 is unused: it
        comes out as it went in.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    return call(
        "decoder_layer_", hidden, key_store, value_store, slots, query_index, query_offsets,
        key_slots, key_index, key_offsets, cos, sin, weights, optional, eps, offset, scale, window,
        softcap, interleaved, activation,
    )  # fmt: skip
