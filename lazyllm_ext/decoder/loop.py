"""The decoder loop: one rule for prefill, decoding and continued turns."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from lazyllm_ext.schedule import ResolvedSchedule
from lazyllm_ext.state import LazyState, StoreSpec, enter_stage_, give_back_, new_state

from .boundary import cross_boundary_
from .layer import LazyLayer
from .modules import Projection, or_identity
from .rows import Keys, Rows, Stage, Step, all_keys, begin_step, last_protected, pick, rows_of_tail
from .rules import BoundaryRule, boundary_rules
from .scoring import add_carried_, update_importance_

# What `LazyDecoder.from_model` calls; this package knows nothing of transformers.
_build: Callable[..., "LazyDecoder"] | None = None


def register_builder(build: Callable[..., "LazyDecoder"]) -> None:
    """Have `LazyDecoder.from_model` call `build` with the same arguments."""
    global _build
    _build = build


class LazyDecoder(nn.Module):
    """A decoder that drops unimportant prompt tokens layer by layer (arXiv 2407.14057).

    Args:
        embed: token ids -> hidden states, the model's own module.
        layers: the blocks, LazyLayer each.
        norm, lm_head: the model's own final norm and output projection.
        ropes: the rotary embeddings that layers name by number, `Rotary` or what gives the same.
        schedule: where tokens are dropped, and how many stay.
        position_embed: positions -> what is added to the hidden states that a step begins with;
            None where no position is learned.
        embed_scale: factor on the hidden states that a step begins with.
        logit_scale: factor on the logits.
        logit_softcap: then logits become c · tanh(logits / c); 0: none.
        checked: raise RuntimeError as soon as an importance or a logit is NaN.

    The parameters are shared with the model, not copied.
    """

    spec: StoreSpec
    boundaries: list[BoundaryRule]
    boundary_at: list[int]  # per layer: the number of the boundary in it, or -1

    def __init__(
        self,
        *,
        embed: nn.Module,
        layers: list[LazyLayer],
        norm: nn.Module,
        lm_head: nn.Module,
        ropes: list[nn.Module],
        schedule: ResolvedSchedule,
        hidden_size: int,
        position_embed: nn.Module | None = None,
        embed_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_softcap: float = 0.0,
        checked: bool = False,
    ):
        super().__init__()
        self.embed, self.norm, self.lm_head = embed, norm, Projection(lm_head)
        self.layers, self.ropes = nn.ModuleList(layers), nn.ModuleList(ropes)
        self.learns_positions = position_embed is not None
        self.position_embed = or_identity(position_embed)
        self.embed_scale, self.logit_scale = embed_scale, logit_scale
        self.logit_softcap, self.checked = logit_softcap, checked
        self.num_layers = len(layers)
        self.window, self.accumulate = schedule.window, schedule.accumulate
        self.bounded = schedule.max_revive >= 0
        # Fixed shapes spare decoding the wait for a count from the device. On the CPU there is no
        # wait, and packed rows are fewer; a step that is compiled needs fixed ones there as well.
        self.fixed_on_cpu = False
        self.boundary_at = [-1] * len(layers)
        for number, layer in enumerate(schedule.layers):
            self.boundary_at[layer] = number
        self.boundaries = boundary_rules(schedule, [layer.num_heads for layer in layers])
        # Stage s: the layers after boundary s, up to and including boundary s + 1.
        ends = [-1, *schedule.layers, len(layers) - 1]
        self.spec = StoreSpec(
            stage_layers=[list(range(before + 1, end + 1)) for before, end in pairwise(ends)],
            num_kv_heads=[layer.num_kv_heads for layer in layers],
            head_dim=[layer.head_dim for layer in layers],
            hidden_size=hidden_size,
            num_boundaries=len(schedule.layers),
        )
        # Called after every layer with (layer, rows), for progress; no part of a scripted decoder.
        self.on_layer: Callable[[int, int], None] | None = None
        # Called at every boundary with scored [K] over the heads that are here; returns it over all
        # heads, for a model whose heads are divided over processes. No part of a scripted decoder.
        self.over_ranks: Callable[[Tensor], Tensor] | None = None
        # Called at every boundary with (boundary number, scored [K] float32: the probabilities that
        # this step's window queries gave to each active token, summed; 0 in unused places). What it
        # returns is used instead. For baselines; no part of a scripted decoder.
        self.on_importance: Callable[[int, Tensor], Tensor] | None = None

    @classmethod
    def from_model(
        cls, model: nn.Module, schedule: object, *, export: bool = False, checked: bool = False
    ) -> "LazyDecoder":
        """The decoder of a transformers causal language model.

        Args:
            model: a supported `…ForCausalLM`.
            schedule: anything that `PruningSchedule.load` takes.
            export: put scriptable modules around the same parameters instead of calling the
                model's own ones, and refuse by name what has none.
            checked: see the class.

        Raises:
            ValueError: the model's family is not supported, or the schedule does not fit it.
        """
        if _build is None:
            raise RuntimeError("LazyDecoder.from_model: no builder is registered")
        return _build(model, schedule, export=export, checked=checked)

    @torch.jit.export
    def new_state(self, batch: int, like: Tensor) -> LazyState:
        """An empty state for `batch` sequences, with the dtype and device of `like`."""
        return new_state(self.spec, batch, like.dtype, like.device)

    @torch.jit.export
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids [rows] int64 -> hidden states [rows, hidden]."""
        return self.embed(ids)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        new_counts: list[int],
        state: LazyState,
        logits_to_keep: int = 1,
    ) -> Tensor:
        """`step` on token ids [rows] int64."""
        return self.step(self.embed(ids), positions, new_counts, state, logits_to_keep)

    @torch.jit.export
    def step(
        self,
        hidden: Tensor,
        positions: Tensor,
        new_counts: list[int],
        state: LazyState,
        logits_to_keep: int = 1,
    ) -> Tensor:
        """Compute the next tokens of every sequence: a prompt, one token, or the next turn.

        Args:
            hidden: [rows, hidden] embedded new tokens, sequence after sequence, no padding.
            positions: [rows] int64, for the rotary embedding.
            new_counts: how many of the rows belong to each sequence; 0 is allowed.
            state: of these sequences; changed in place.
            logits_to_keep: logits are computed for so many last new tokens of each sequence.

        Returns:
            [Σ_b min(logits_to_keep, new_counts[b]), vocab] logits, packed like the rows.
        """
        step, stage, hidden = self._begin(hidden, positions, new_counts, state, logits_to_keep)
        for number, layer in enumerate(self.layers):
            keys, values = state.keys[number], state.values[number]
            boundary = self.boundary_at[number]
            all_go_on = number < self.num_layers - 1 or step.last.back.size(0) == hidden.size(0)
            if boundary < 0 and all_go_on:
                hidden = layer.whole_layer(hidden, stage, keys, values)
            else:
                # 1. Keys and values of all rows.
                x = layer.input_norm(hidden)
                layer.append_keys_(x, stage, keys, values)
                seen = stage.keys
                if boundary >= 0:
                    rule = self.boundaries[boundary]
                    # 2. Score.
                    scored = layer.importance(x, stage, step.window, keys, rule)
                    self._update_importance(state, step, seen, scored, boundary)
                    # 3. Select, 4. revive, 5. drop.
                    active, rows, slots, hidden = cross_boundary_(
                        state, self.spec, rule, step, stage, hidden
                    )
                    stage = self._stage(state, rows, slots, active, hidden)
                    x = layer.input_norm(hidden)
                else:
                    stage, hidden, x = self._last_rows(state, step, stage, hidden, x)
                # 6. Only now the rest of the layer, for the rows that are left.
                hidden = layer.attend_and_finish(hidden, x, stage, seen, keys, values)
            if not torch.jit.is_scripting() and self.on_layer is not None:
                self.on_layer(number, hidden.size(0))
        for sequence, count in enumerate(new_counts):
            state.finished[sequence] += min(count, logits_to_keep)
        give_back_(state)
        return self._logits(hidden)

    def _begin(
        self,
        hidden: Tensor,
        positions: Tensor,
        new_counts: list[int],
        state: LazyState,
        logits_to_keep: int,
    ) -> tuple[Step, Stage, Tensor]:
        """Enter the new tokens: the step, its stage 0, and the rows that layer 0 gets."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise RuntimeError(
                "step: inference only: hidden requires grad; call it under torch.no_grad()"
            )
        if self.embed_scale != 1.0:
            hidden = hidden * self.embed_scale
        if self.learns_positions:
            hidden = hidden + self.position_embed(positions)
        protect_last = self.window
        if len(self.boundaries) > 0:
            protect_last = last_protected(new_counts, self.window, logits_to_keep)
        step, rows = begin_step(
            state,
            positions,
            new_counts,
            self.window,
            logits_to_keep,
            protect_last,
            self.accumulate,
            self.bounded and (self.fixed_on_cpu or not hidden.is_cpu),
        )
        slots = enter_stage_(state, self.spec, 0, rows.place)
        keys = all_keys(state, new_counts, step.fixed)
        return step, self._stage(state, rows, slots, keys, hidden), hidden

    def _update_importance(
        self, state: LazyState, step: Step, keys: Keys, scored: Tensor, boundary: int
    ) -> None:
        """The scores [K] of the heads that are here become a part of the boundary's importance."""
        if not torch.jit.is_scripting() and self.over_ranks is not None:
            scored = self.over_ranks(scored)
        if self.checked:
            _refuse_nan(scored, "importance", self.boundary_at.index(boundary))
        if not torch.jit.is_scripting() and self.on_importance is not None:
            scored = self.on_importance(boundary, scored)
        if self.accumulate:
            scored = add_carried_(step.carried, scored, keys)
        update_importance_(state, boundary, step, keys, scored, self.window)

    def _last_rows(
        self, state: LazyState, step: Step, stage: Stage, hidden: Tensor, x: Tensor
    ) -> tuple[Stage, Tensor, Tensor]:
        """In the last layer only the rows go on whose logits are asked; x are the normed ones."""
        where = rows_of_tail(step.last, stage.rows)
        hidden, x = hidden.index_select(0, where), x.index_select(0, where)
        rows = pick(stage.rows, where, step.last)
        return self._stage(state, rows, stage.slots, stage.keys, hidden), hidden, x

    def _stage(
        self, state: LazyState, rows: Rows, slots: Tensor, keys: Keys, hidden: Tensor
    ) -> Stage:
        """What the next layers share, with the rotations of the rows in the dtype of `hidden`."""
        positions = state.position[0].view(-1).index_select(0, rows.place.clamp(min=0))
        cosines: list[Tensor] = []
        sines: list[Tensor] = []
        for rope in self.ropes:
            cos, sin = rope(positions, hidden.dtype)
            cosines.append(cos)
            sines.append(sin)
        return Stage(rows, slots, keys, cosines, sines)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(self.norm(hidden))
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap > 0.0:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        if self.checked:
            _refuse_nan(logits, "logits", self.num_layers - 1)
        return logits


def _refuse_nan(values: Tensor, what: str, layer: int) -> None:
    if bool(torch.isnan(values).any().item()):
        raise RuntimeError(f"LazyDecoder: NaN in the {what} of layer {layer}")
