"""Operators that move rows into stores and out of them."""

from __future__ import annotations

from torch import Tensor

from .calling import call


def aux_gather(source: Tensor, index: Tensor) -> Tensor:
    """Rows out of the Aux Cache (arXiv 2407.14057, section 3.3) or of any row-wise tensor.

    ``torch.index_select(source, 0, index)``, with zeros for -1.

    Args:
        source: [N, ...] float or int64; a row must be contiguous, rows may be any stride apart.
        index: [R] int64, rows of `source`, or -1.

    Returns:
        [R, ...] of the source's dtype.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    return call("aux_gather", source, index)


def aux_scatter_(destination: Tensor, index: Tensor, rows: Tensor) -> None:
    """Rows into the Aux Cache (arXiv 2407.14057, section 3.3) or any row-wise tensor, in place.

    ``destination[index] = rows``, leaving -1 out.

    Args:
        destination: [N, ...] float or int64; a row must be contiguous, rows may be any stride
            apart.
        index: [R] int64, distinct rows of `destination`, or -1. That they are distinct is not
            checked.
        rows: [R, ...] of the destination's dtype, rows as in `destination`.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    call("aux_scatter_", destination, index, rows)


def kv_append_(
    key_store: Tensor, value_store: Tensor, slots: Tensor, key: Tensor, value: Tensor
) -> None:
    """Put new keys and values into their slots of the stores, in place.

    ``key_store[slots] = key; value_store[slots] = value``, leaving -1 out.

    Args:
        key_store, value_store: [slots, Hkv, D] float of one dtype.
        slots: [T] int64, distinct rows of the stores, or -1. That they are distinct is not checked.
        key, value: [T, Hkv, D], the same dtype.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    call("kv_append_", key_store, value_store, slots, key, value)
