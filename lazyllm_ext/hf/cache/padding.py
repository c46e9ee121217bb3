"""Which columns of a padded batch hold a token, and which rows those are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lazyllm_ext.errors import NotSupportedError, refusal
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .cache import LazyCache


@dataclass(frozen=True)
class Padding:
    """Where the tokens of a call stand among its columns."""

    batch: int
    columns: int
    counts: list[int]  # new tokens of each sequence
    # [rows] int64, where each row is in the flattened [batch · columns] input; None where every
    # column holds a token.
    place: Tensor | None = None
    absent: Tensor | None = None  # [B, all columns so far] bool, see `LazyCache.absent`

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


def find_padding(
    mask: Tensor | None, batch: int, columns: int, cache: LazyCache, device: torch.device
) -> Padding:
    """Which columns of a call hold a token.

    Args:
        mask: [B, columns seen before + columns], 0 where there is no token; None: all hold one.

    Raises:
        NotSupportedError: a mask that is no table of zeros and ones, has other columns, or leaves a
            sequence without a new token.
        ValueError: a mask of other rows, or one that contradicts what was computed before.
    """
    every_column = [columns] * batch
    if mask is None:
        if cache.absent is not None and not cache.mask_follows:
            raise ValueError(
                f"attention_mask: expected the mask of all columns, since {CACHE_NAME} holds "
                "padded sequences, got none"
            )
        return Padding(batch, columns, every_column, absent=cache.absent)
    check_mask(mask)
    if mask.size(0) == 1 != batch and bool(mask.all()):  # one for all, which transformers skips
        mask = mask.expand(batch, -1)
    _check_shape(mask, batch, columns, cache.columns)
    absent = (mask == 0).to(device)
    if cache.absent is None and not bool(absent.any()):
        return Padding(batch, columns, every_column)
    _check_past(absent[:, : cache.columns], cache.absent)
    new = ~absent[:, cache.columns :]
    counts = new.sum(dim=1).tolist()
    if 0 in counts:
        raise refusal(
            "attention_mask", "a new token in every sequence", f"none in {counts.index(0)}"
        )
    place = None if counts == every_column else new.reshape(-1).nonzero().view(-1)
    return Padding(batch, columns, counts, place, absent)


def check_mask(mask: Tensor) -> None:
    """Raises NotSupportedError for a mask that does not say which columns hold a token.

    transformers also takes tables of 4 dimensions. Other numbers than 0 and 1 hide nothing there,
    but make its generate count other positions.
    """
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        got = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise refusal("attention_mask", "2 dimensions [batch, columns]", got)
    if mask.dtype != torch.bool and not torch.equal(mask, (mask != 0).to(mask.dtype)):
        others = mask[(mask != 0) & (mask != 1)]
        raise refusal("attention_mask", "0 and 1 only", others[0].item())


def _check_shape(mask: Tensor, batch: int, columns: int, before: int) -> None:
    words = (
        f"attention_mask: expected shape [{batch}, {before + columns}] ({before} columns "
        f"before, {columns} new), got {list(mask.shape)}"
    )
    if mask.size(0) != batch:
        raise ValueError(words)
    if mask.size(1) != before + columns:
        raise NotSupportedError(words)


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
