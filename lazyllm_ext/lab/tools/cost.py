"""Operations of a prefill: the yardstick for "as fast as the work that is left allows"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder, LazyLayer
from lazyllm_ext.decoder.modules import PartOfProjection, is_plain


@dataclass(frozen=True)
class Operations:
    """Floating-point operations (a multiply and an add are two) of one prefill, batch 1."""

    projections: int
    mlp: int
    attention: int
    lm_head: int

    @property
    def total(self) -> int:
        return self.projections + self.mlp + self.attention + self.lm_head


def prefill_operations(
    decoder: LazyDecoder, tokens: int, active: Sequence[Tensor] = (), last_rows: int = 1
) -> Operations:
    """Operations that `decoder` needs for a first prefill of `tokens` tokens.

    Per layer: key and value projections for the rows that enter, query and output projection and
    MLP for the rows that leave (fewer in a boundary layer and in the last), attention
    4 · num_heads · head_dim for every pair of a row that leaves and an active key that is not above
    it; one row of the output projection. Scoring is not counted; all experts of a mixture are.

    Args:
        decoder: its layers give the sizes, its schedule the boundaries.
        tokens: length of the prompt.
        active: A_1 … A_S, the token indices that each boundary kept (`active_sets`); needed when
            the schedule has boundaries, since the pairs depend on which tokens stay.
        last_rows: for how many last tokens the last layer is finished; transformers finishes it
            for all of them.
    """
    if len(active) != len(decoder.boundaries):
        raise ValueError(
            f"active: expected {len(decoder.boundaries)} selections, one per boundary, "
            f"got {len(active)}"
        )
    every = torch.arange(tokens)
    keys = rows = every
    projections = mlp = attention = 0
    for number, layer in enumerate(decoder.layers):
        entering, seen = rows, keys
        if decoder.boundary_at[number] >= 0:
            keys = rows = active[decoder.boundary_at[number]].cpu()
        leaving = rows[-last_rows:] if number == decoder.num_layers - 1 else rows
        projections += _per_row(layer.k_proj, layer.v_proj) * entering.numel()
        projections += _per_row(layer.q_proj, layer.o_proj) * leaving.numel()
        mlp += _per_row(layer.mlp) * leaving.numel()
        attention += 4 * layer.num_heads * layer.head_dim * _pairs(layer, leaving, seen)
    return Operations(projections, mlp, attention, _per_row(decoder.lm_head))


def active_sets(decoder: LazyDecoder, state: bookkeeping.LazyState) -> list[Tensor]:
    """A_1 … A_S of the last step of one sequence: the token indices that each boundary kept."""
    return [bookkeeping.active(state, s + 1, 0) for s in range(len(decoder.boundaries))]


def _per_row(*modules: nn.Module) -> int:
    """Operations for one row: two for every weight of a matrix, as far as it is multiplied."""
    total = 0
    for module in modules:
        if isinstance(module, PartOfProjection) and is_plain(module.linear):
            total += 2 * module.weight().numel()
            continue
        for part in module.modules():
            if isinstance(part, nn.Linear):  # quantized weights may be packed
                total += 2 * part.in_features * part.out_features
            else:
                own = part.parameters(recurse=False)
                total += 2 * sum(weight.numel() for weight in own if weight.dim() >= 2)
    return total


def _pairs(layer: LazyLayer, rows: Tensor, keys: Tensor) -> int:
    """Pairs of a row and a visible key; `rows` and `keys` are ascending token indices."""
    upto = torch.searchsorted(keys, rows, right=True)
    below = torch.searchsorted(keys, rows - layer.window, right=True) if layer.window else 0
    return int((upto - below).sum())
