"""The decoder loop: one rule for prefill, decoding and continued turns."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lazyllm_ext.schedule import ResolvedSchedule
from lazyllm_ext.state import LazyState, StoreSpec, enter_stage_, give_back_, new_state

from .boundary import Boundary, cross_, update_importance_
from .layer import LazyLayer
from .modules import Projection
from .rows import Rows, all_keys, begin_step, last_protected, pick, rows_of_tail
from .scoring import add_carried, score

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
    boundaries: list[Boundary]
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
        self.position_embed = position_embed if position_embed is not None else nn.Identity()
        self.embed_scale, self.logit_scale = embed_scale, logit_scale
        self.logit_softcap, self.checked = logit_softcap, checked
        self.num_layers = len(layers)
        self.window = schedule.window
        self.over_heads, self.accumulate = schedule.over_heads, schedule.accumulate
        self.bounded = schedule.max_revive >= 0
        # Fixed shapes spare decoding the wait for a count from the device. On the CPU there is no
        # wait, and packed rows are fewer; a step that is compiled needs fixed ones there as well.
        self.fixed_on_cpu = False
        self.boundary_at = [-1] * len(layers)
        self.boundaries = []
        for number, layer in enumerate(schedule.layers):
            self.boundary_at[layer] = number
            heads = schedule.heads[number] if schedule.heads else ()
            _check_heads(heads, layer, layers[layer].num_heads)
            self.boundaries.append(
                Boundary(
                    number,
                    schedule.keeps[number],
                    schedule.budgets[number],
                    list(heads),
                    schedule.pool,
                    schedule.protect_first,
                    schedule.max_revive,
                    schedule.min_tokens,
                )
            )
        self.spec = StoreSpec(
            # Stage s: the layers after boundary s, up to and including boundary s + 1.
            stage_layers=[
                list(range(first + 1, last + 1))
                for first, last in zip(
                    [-1, *schedule.layers], [*schedule.layers, len(layers) - 1], strict=True
                )
            ],
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
            self.bounded and (self.fixed_on_cpu or not hidden.is_cpu),
        )
        slots = enter_stage_(state, self.spec, 0, rows.place)
        keys = all_keys(state, new_counts, step.fixed)
        cos, sin = self._rotations(state, rows, hidden)
        carried = torch.zeros([0], dtype=torch.float32, device=hidden.device)
        for number, layer in enumerate(self.layers):
            boundary = self.boundary_at[number]
            all_go_on = number < self.num_layers - 1 or step.last.back.size(0) == hidden.size(0)
            finished: Tensor | None = None
            if boundary < 0 and all_go_on:
                finished = layer.in_one_call(
                    hidden,
                    rows,
                    slots,
                    keys,
                    state.keys[number],
                    state.values[number],
                    cos[layer.rope],
                    sin[layer.rope],
                )
            if finished is not None:
                hidden = finished
            else:
                x = layer.input_norm(hidden)
                key, value = layer.key_value(x, cos[layer.rope], sin[layer.rope])
                torch.ops.lazyllm.kv_append_(
                    state.keys[number], state.values[number], slots, key, value
                )
                seen = keys
                if boundary >= 0:
                    where = rows_of_tail(step.window, rows)
                    queries = layer.query(
                        x.index_select(0, where),
                        cos[layer.rope].index_select(0, where),
                        sin[layer.rope].index_select(0, where),
                    )
                    scored = score(
                        queries,
                        pick(rows, where, step.window.offsets),
                        state.keys[number],
                        keys,
                        layer.scale,
                        layer.softcap,
                        self.boundaries[boundary].heads,
                        self.over_heads,
                    )
                    if not torch.jit.is_scripting() and self.over_ranks is not None:
                        scored = self.over_ranks(scored)
                    if self.checked:
                        _refuse_nan(scored, "importance", number)
                    if not torch.jit.is_scripting() and self.on_importance is not None:
                        scored = self.on_importance(boundary, scored)
                    if self.accumulate:
                        scored, carried = add_carried(
                            scored, carried, keys, state.importance[boundary]
                        )
                    update_importance_(state, boundary, step, keys, scored, self.window)
                    keys, rows, hidden, slots = cross_(
                        state, self.spec, self.boundaries[boundary], step, keys, rows, hidden
                    )
                    cos, sin = self._rotations(state, rows, hidden)
                    x = layer.input_norm(hidden)
                elif number == self.num_layers - 1:
                    where = rows_of_tail(step.last, rows)
                    rows = pick(rows, where, step.last.offsets)
                    hidden, x = hidden.index_select(0, where), x.index_select(0, where)
                    cos, sin = self._rotations(state, rows, hidden)
                query = layer.query(x, cos[layer.rope], sin[layer.rope])
                attended = torch.ops.lazyllm.lazy_attention(
                    query,
                    rows.index,
                    rows.offsets,
                    state.keys[number],
                    state.values[number],
                    seen.slots,
                    seen.index,
                    seen.offsets,
                    layer.scale,
                    layer.window,
                    layer.softcap,
                )
                hidden = layer.finish(hidden, attended)
            if not torch.jit.is_scripting() and self.on_layer is not None:
                self.on_layer(number, hidden.size(0))
        for sequence, count in enumerate(new_counts):
            state.finished[sequence] += min(count, logits_to_keep)
        give_back_(state)
        return self._logits(hidden)

    def _rotations(
        self, state: LazyState, rows: Rows, hidden: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """cos and sin [rows, rotary_dim / 2] of the rows, for each rotary embedding."""
        positions = state.position[0].view(-1).index_select(0, rows.place.clamp(min=0))
        cosines: list[Tensor] = []
        sines: list[Tensor] = []
        for rope in self.ropes:
            cos, sin = rope(positions, hidden.dtype)
            cosines.append(cos)
            sines.append(sin)
        return cosines, sines

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(self.norm(hidden))
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap > 0.0:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        if self.checked:
            _refuse_nan(logits, "logits", self.num_layers - 1)
        return logits


def _check_heads(heads: tuple[int, ...], layer: int, num_heads: int) -> None:
    for head in heads:
        if head >= num_heads:
            raise ValueError(
                f"schedule: layer {layer}: heads: expected numbers of query heads, 0 to "
                f"{num_heads - 1}, got {head}"
            )


def _refuse_nan(values: Tensor, what: str, layer: int) -> None:
    if bool(torch.isnan(values).any().item()):
        raise RuntimeError(f"LazyDecoder: NaN in the {what} of layer {layer}")
