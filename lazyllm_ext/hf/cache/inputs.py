"""From padded batches to packed rows, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .cache import LazyCache


@dataclass(frozen=True)
class Rows:
    """The tokens of a call, sequence after sequence, without the columns that hold none.

    Attributes:
        batch, columns: shape of the call's inputs.
        counts: new tokens of each sequence.
        place: [rows] int64, place of each row in the flattened [batch · columns] input; None where
            every column holds a token.
        absent: [B, all columns so far] bool, see `LazyCache.absent`.
    """

    batch: int
    columns: int
    counts: list[int]
    place: Tensor | None
    absent: Tensor | None

    def pack(self, padded: Tensor) -> Tensor:
        """[B, columns, …] -> [rows, …]."""
        flat = padded.reshape(self.batch * self.columns, *padded.shape[2:])
        return flat if self.place is None else flat.index_select(0, self.place)

    def unpack(self, logits: Tensor, kept: int) -> Tensor:
        """Logits [Σ_b min(kept, counts[b]), vocab] -> [B, kept, vocab].

        With kept == columns each token's are in its own column; otherwise the last tokens' are at
        the end, whatever columns without a token came after them. Zeros where there are none.
        """
        if self.place is None or all(count >= kept for count in self.counts):
            return logits.view(self.batch, kept, -1)
        if kept == self.columns:
            place = self.place
        else:
            ends = [(b + 1) * kept for b in range(self.batch)]
            place = torch.tensor(
                [
                    column
                    for end, count in zip(ends, self.counts, strict=True)
                    for column in range(end - min(kept, count), end)
                ],
                device=logits.device,
            )
        padded = logits.new_zeros(self.batch * kept, logits.size(-1))
        return padded.index_copy_(0, place, logits).view(self.batch, kept, -1)


def find_rows(
    mask: Tensor | None, batch: int, columns: int, cache: LazyCache, device: torch.device
) -> Rows:
    """Which columns of a call hold a token.

    Args:
        mask: [B, columns seen before + columns], 0 where there is no token; None: all hold one.

    Raises:
        NotSupportedError: a mask that is no table, or leaves a sequence without a new token.
        ValueError: a mask of another size, or one that contradicts what was computed before.
    """
    if mask is None:
        if cache.absent is not None and not cache.mask_follows:
            raise ValueError(
                f"attention_mask: expected the mask of all columns, since {CACHE_NAME} holds "
                "padded sequences, got none"
            )
        return Rows(batch, columns, [columns] * batch, None, cache.absent)
    total = cache.columns + columns
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        got = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise NotSupportedError(
            f"attention_mask: expected 2 dimensions [batch, columns], got {got}"
        )
    if tuple(mask.shape) != (batch, total):
        raise ValueError(
            f"attention_mask: expected shape [{batch}, {total}] ({cache.columns} columns before, "
            f"{columns} new), got {list(mask.shape)}"
        )
    absent = (mask == 0).to(device)
    if cache.absent is None and not bool(absent.any()):
        return Rows(batch, columns, [columns] * batch, None, None)
    _check_past(absent[:, : cache.columns], cache.absent)
    new = ~absent[:, cache.columns :]
    counts = new.sum(dim=1).tolist()
    for sequence, count in enumerate(counts):
        if count == 0:
            raise NotSupportedError(
                f"attention_mask: expected a new token in every sequence, got none in {sequence}"
            )
    full = all(count == columns for count in counts)
    return Rows(
        batch, columns, counts, None if full else new.reshape(-1).nonzero().view(-1), absent
    )


def _check_past(absent: Tensor, before: Tensor | None) -> None:
    """The columns of earlier calls hold what they held then."""
    known = torch.zeros_like(absent)
    if before is not None:
        known[:, : before.size(1)] = before
    if torch.equal(absent, known):
        return
    sequence, column = (absent != known).nonzero()[0].tolist()
    if known[sequence, column]:
        problem = "shows a token that did not exist"
    else:
        problem = "hides a token that is stored"
    raise ValueError(
        "attention_mask: expected earlier columns as they were when they were computed, "
        f"got one that {problem}: sequence {sequence}, column {column}"
    )


def find_positions(
    position_ids: Tensor | None, rows: Rows, cache: LazyCache, device: torch.device
) -> Tensor:
    """Positions [rows] int64: those given, else each token's index in its own sequence.

    Raises:
        NotSupportedError: positions that are no whole numbers.
        ValueError: positions of another size.
    """
    if position_ids is not None:
        if not isinstance(position_ids, Tensor) or position_ids.is_floating_point():
            got = getattr(position_ids, "dtype", type(position_ids).__name__)
            raise NotSupportedError(f"position_ids: expected a tensor of int64, got {got}")
        if position_ids.dim() != 2 or position_ids.size(0) not in (1, rows.batch):
            raise ValueError(
                f"position_ids: expected shape [{rows.batch}, {rows.columns}], "
                f"got {list(position_ids.shape)}"
            )
        if position_ids.size(1) == cache.columns + rows.columns:
            position_ids = position_ids[:, cache.columns :]
        if position_ids.size(1) != rows.columns:
            raise ValueError(
                f"position_ids: expected {rows.columns} columns, got {position_ids.size(1)}"
            )
        return rows.pack(position_ids.expand(rows.batch, -1).to(device)).long()
    if cache.state is not None and rows.columns == 1:
        return cache.state.length.clone()  # on the device already
    lengths = [0] * rows.batch if cache.state is None else cache.state.host_length
    spans = [
        torch.arange(length, length + count, device=device)
        for length, count in zip(lengths, rows.counts, strict=True)
    ]
    return spans[0] if rows.batch == 1 else torch.cat(spans)


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache of a call, whichever name it was given by."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache: expected one of cache and past_key_values, got both")
    return past_key_values if cache is None else cache
