"""The method written down slowly: LazyLLM on one sequence, in plain PyTorch (arXiv 2407.14057).

One rule serves the prompt, a decoded token and the next turn of a chat. Sets are Python sets of
token indices (a token's place in its sequence), what is stored is in dicts by token index, and the
model's own modules compute. Nothing here is shared with the package's state, decoder or operators.

Words: `n` tokens so far, T of them new in this step, boundaries s = 1 … S in layers p_1 < … < p_S;
A_s the tokens that this step uses after boundary s, C_s those that have passed it in any step,
Aux Cache s the hidden states of C_{s-1} without C_s, which wait at the boundary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Where the scores at a cut differ by less, rounding decides who is selected.
ROUNDING = 1e-6
# Below it, float32 has fewer digits than that.
_TINY = 1e-30


class Block:
    """One layer of a transformers model, taken apart; everything is the model's own modules."""

    def __init__(self, model: Any, number: int):
        config, layer = model.config, model.model.layers[number]
        self.attention = layer.self_attn
        self.mlp = layer.mlp
        self.input_norm = layer.input_layernorm
        self.attention_out_norm: Any = nn.Identity()
        self.mlp_norm = layer.post_attention_layernorm
        self.mlp_out_norm: Any = nn.Identity()
        if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma: norms after attention and MLP too
            self.attention_out_norm = layer.post_attention_layernorm
            self.mlp_norm = layer.pre_feedforward_layernorm
            self.mlp_out_norm = layer.post_feedforward_layernorm
        self.heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self.head_dim = self.attention.head_dim
        layer_types = getattr(config, "layer_types", None)
        self.window: int | None = getattr(config, "sliding_window", None)
        if layer_types is not None and layer_types[number] != "sliding_attention":
            self.window = None
        self.rotary = model.model.rotary_emb
        # Gemma 3 has a rotary embedding for each kind of layer.
        self.rotary_arguments = (
            [layer_types[number]] if hasattr(layer, "pre_feedforward_layernorm") else []
        )

    def _rotated(self, x: Tensor, positions: list[int]) -> Tensor:
        """[R, heads, head_dim] -> the same, rotated by the positions of the rows."""
        cos, sin = self.rotary(
            x, torch.tensor([positions]), *self.rotary_arguments
        )  # [1, R, head_dim]
        cos, sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def keys_values(self, x: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Normed rows [R, hidden] -> keys and values, [R, key heads, head_dim] each."""
        key = self.attention.k_proj(x).view(len(x), self.key_heads, self.head_dim)
        value = self.attention.v_proj(x).view(len(x), self.key_heads, self.head_dim)
        if hasattr(self.attention, "k_norm"):
            key = self.attention.k_norm(key)
        return self._rotated(key, positions), value

    def queries(self, x: Tensor, positions: list[int]) -> Tensor:
        """Normed rows [R, hidden] -> queries [R, heads, head_dim]."""
        query = self.attention.q_proj(x).view(len(x), self.heads, self.head_dim)
        if hasattr(self.attention, "q_norm"):
            query = self.attention.q_norm(query)
        return self._rotated(query, positions)

    def attention_logits(self, query: Tensor, keys: Tensor) -> Tensor:
        """One query [heads, head_dim] and keys [N, key heads, head_dim] -> [heads, N], float32."""
        keys = keys.repeat_interleave(self.heads // self.key_heads, dim=1)  # [N, heads, head_dim]
        return torch.einsum("hd,nhd->hn", query.float(), keys.float()) * self.attention.scaling

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One query [heads, head_dim] over [N, key heads, head_dim] -> [heads, head_dim]."""
        probabilities = self.attention_logits(query, keys).softmax(dim=-1)
        values = values.repeat_interleave(self.heads // self.key_heads, dim=1)
        return torch.einsum("hn,nhd->hd", probabilities.to(values.dtype), values)

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Residual rows [R, hidden], attended [R, heads, head_dim] -> the output [R, hidden]."""
        projected = self.attention.o_proj(attended.reshape(len(hidden), -1))
        hidden = hidden + self.attention_out_norm(projected)
        return hidden + self.mlp_out_norm(self.mlp(self.mlp_norm(hidden)))


class Oracle:
    """LazyLLM on one sequence.

    Args:
        model: a transformers causal language model of a supported family.
        schedule: anything with the fields of a resolved schedule: layers, keeps, budgets (-1:
            none), heads (empty: all), window, pool, protect_first, over_heads, accumulate,
            max_revive (-1: unbounded), min_tokens.

    Attributes, lists by s (place 0 stands for no boundary):
        active: A_0 … A_S of the last step, ascending.
        computed: C_0 … C_S.
        aux: for s ≥ 1, token -> hidden state that waits; {} at place 0.
        importance: for s ≥ 1, I_s, float32 [n]; empty at place 0.
        revived: for s ≥ 1, the tokens that the last step revived, ascending; [] at place 0.
        revived_total: how many, since the start.
        pooled: for s ≥ 1, token of A_{s-1} -> pooled score in the last step.
        margin: for s ≥ 1, relative difference of the scores at the cut; inf where nothing was cut.
        stored: for each layer, token -> (key, value), [key heads, head_dim] each.
        rows_stored, rows_computed: for each layer, of how many rows keys and values were computed,
            and how many were run to its end, since the start.
    """

    def __init__(self, model: Any, schedule: Any):
        self.model, self.schedule = model, schedule
        self.blocks = [Block(model, number) for number in range(model.config.num_hidden_layers)]
        stages = len(schedule.layers) + 1
        self.position: list[int] = []
        self.stored: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in self.blocks]
        self.aux: list[dict[int, Tensor]] = [{} for _ in range(stages)]
        self.computed: list[set[int]] = [set() for _ in range(stages)]
        self.importance = [torch.zeros(0) for _ in range(stages)]
        self.active: list[list[int]] = [[] for _ in range(stages)]
        self.revived: list[list[int]] = [[] for _ in range(stages)]
        self.revived_total = [0] * stages
        self.pooled: list[dict[int, float]] = [{} for _ in range(stages)]
        self.margin = [math.inf] * stages
        self.rows_stored = [0] * len(self.blocks)
        self.rows_computed = [0] * len(self.blocks)

    @property
    def n(self) -> int:
        """Tokens so far."""
        return len(self.position)

    @torch.no_grad()
    def step(
        self,
        ids: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        logits_to_keep: int = 1,
        *,
        embeddings: Tensor | None = None,
        follow: Sequence[Collection[int]] | None = None,
    ) -> Tensor:
        """Bring T ≥ 1 new tokens; logits [m, vocab] of the last m of them.

        Args:
            ids: of the new tokens; or
            embeddings: [T, hidden] of them.
            positions: for the rotary embedding; one after the other by default.
            logits_to_keep: m; more than T means T, since only new tokens have logits.
            follow: A_1 … A_S as another implementation chose them. They are adopted where rounding
                decides, and nowhere else: compare them with `active` afterwards.
        """
        if embeddings is None:
            embeddings = self.model.model.embed_tokens(torch.tensor(list(ids or [])))
        new = range(self.n, self.n + len(embeddings))
        asked = min(logits_to_keep, len(new))
        self.position += list(positions) if positions is not None else list(new)

        rows = dict(zip(new, embeddings, strict=True))  # token -> hidden state, being computed
        active = list(range(self.n))  # A_0: all tokens so far
        self.active[0] = active
        self.computed[0] |= set(new)
        boundary = 0  # the last boundary that was passed
        for number, block in enumerate(self.blocks):
            self._store_keys_and_values(number, block, rows)  # rule 1
            attended = active
            if number in self.schedule.layers:
                boundary += 1
                self._score(boundary, number, block, rows, new, active)  # rule 2
                chosen = self._select(boundary, active, asked)  # rule 3
                chosen = self._bound_revivals(boundary, chosen)
                active = self.active[boundary] = sorted(self._settle(boundary, chosen, follow))
                rows = self._revive_and_drop(boundary, rows, active)  # rules 4 and 5
            elif number == len(self.blocks) - 1:
                rows = {index: rows[index] for index in new[len(new) - asked :]}
            rows = self._rest_of_layer(number, block, rows, attended)  # rule 6
        return self._logits(rows)

    def crop(self, count: int) -> None:
        """Remove the newest tokens; what they added to others' importance stays."""
        for index in range(self.n - count, self.n):
            for tokens in [*self.stored, *self.aux]:
                tokens.pop(index, None)
            for passed in self.computed:
                passed.discard(index)
        self.position = self.position[: self.n - count]
        self.importance = [scores[: self.n] for scores in self.importance]

    def fork(self) -> Oracle:
        """An oracle that goes on from here by itself."""
        twin = Oracle(self.model, self.schedule)
        twin.position, twin.importance = list(self.position), list(self.importance)
        twin.stored = [dict(tokens) for tokens in self.stored]
        twin.aux = [dict(tokens) for tokens in self.aux]
        twin.computed = [set(tokens) for tokens in self.computed]
        return twin

    # The rules of a boundary, in their order

    def _store_keys_and_values(self, number: int, block: Block, rows: dict[int, Tensor]) -> None:
        """Rule 1: keys and values of this layer for all rows, at most once for every token."""
        x = block.input_norm(_stacked(rows.values()))
        keys, values = block.keys_values(x, self._positions(rows))
        for index, key, value in zip(rows, keys, values, strict=True):
            assert index not in self.stored[number], "computed twice"
            self.stored[number][index] = (key, value)
            self.rows_stored[number] += 1

    def _score(
        self,
        s: int,
        number: int,
        block: Block,
        rows: dict[int, Tensor],
        new: range,
        active: list[int],
    ) -> None:
        """Rule 2: the importance vector, from the attention of the last w new tokens."""
        window, count = self.schedule.window, len(new)
        total = torch.zeros(block.heads, self.n)  # Σ p_i of each head
        for i in new[-window:]:
            x = block.input_norm(rows[i].unsqueeze(0))
            query = block.queries(x, [self.position[i]])[0]
            seen = [j for j in active if j <= i]
            logits = block.attention_logits(
                query, _stacked(self.stored[number][j][0] for j in seen)
            )
            total[:, seen] += _probabilities(query, logits)
        if self.schedule.heads and self.schedule.heads[s - 1]:
            total = total[list(self.schedule.heads[s - 1])]
        total = total.amax(dim=0) if self.schedule.over_heads == "max" else total.mean(dim=0)
        if self.schedule.accumulate:
            if s > 1:
                total[active] += self._scored[active]
            self._scored = total
        old = torch.cat([self.importance[s], torch.zeros(count)])
        if count < window:
            self.importance[s] = (1 - count / window) * old + total / window
        else:
            self.importance[s] = total / window

    def _select(self, s: int, active: list[int], asked: int) -> set[int]:
        """Rule 3: who stays, of the tokens that are active."""
        schedule, n = self.schedule, self.n
        scores = [-math.inf if math.isnan(x) else x for x in self.importance[s].tolist()]
        half = schedule.pool // 2
        pooled, self._source = {}, {}
        for j in active:
            around = range(max(0, j - half), min(n, j + half + 1))
            self._source[j] = max(around, key=lambda k: scores[k])  # whose score it is
            pooled[j] = scores[self._source[j]]
        first_last = max(schedule.window, asked)
        self._protected = {j for j in active if j >= n - first_last or j < schedule.protect_first}
        self.pooled[s] = pooled
        self._cuts: list[tuple[int, int]] = []  # (last one in, first one out), for `_settle`
        self._ranking = sorted(active, key=lambda j: (j not in self._protected, -pooled[j], j))
        if n < schedule.min_tokens:
            return set(active)
        budget = schedule.budgets[s - 1]
        wanted = budget if budget >= 0 else math.ceil(schedule.keeps[s - 1] * n - 1e-9)
        count = min(len(active), max(1, len(self._protected), wanted))
        selectable = [j for j in self._ranking if j in self._protected or pooled[j] > -math.inf]
        self._note_cut(selectable, count)
        return set(selectable[:count])

    def _bound_revivals(self, s: int, chosen: set[int]) -> set[int]:
        """Rule 4: at most R of those that wait come back, the best ranked; the others leave A_s.

        This holds below `min_tokens` too: R = 0 never computes a dropped token again. (Tokens can
        be waiting there only after a crop.)
        """
        bound = self.schedule.max_revive
        if bound < 0:
            return chosen
        waiting = [j for j in self._ranking if j in chosen and j in self.aux[s]]
        self._note_cut(waiting, bound)
        return chosen - set(waiting[bound:])

    def _revive_and_drop(
        self, s: int, rows: dict[int, Tensor], active: list[int]
    ) -> dict[int, Tensor]:
        """Rules 4 and 5: A_s without C_s leaves the Aux Cache, rows outside A_s go into it."""
        self.revived[s] = [j for j in active if j in self.aux[s]]
        self.revived_total[s] += len(self.revived[s])
        going = {}
        for j in active:
            if j in self.aux[s]:
                going[j] = self.aux[s].pop(j)
            elif j in rows:
                going[j] = rows[j]
        for j, hidden in rows.items():
            if j not in going:
                self.aux[s][j] = hidden
        self.computed[s] |= set(going)
        return going

    def _rest_of_layer(
        self, number: int, block: Block, rows: dict[int, Tensor], active: list[int]
    ) -> dict[int, Tensor]:
        """Rule 6: attention over `active`, output projection and MLP, for the rows left."""
        hidden = _stacked(rows.values())
        queries = block.queries(block.input_norm(hidden), self._positions(rows))
        attended = []
        for i, query in zip(rows, queries, strict=True):
            seen = [j for j in active if j <= i and (block.window is None or j > i - block.window)]
            keys = _stacked(self.stored[number][j][0] for j in seen)
            values = _stacked(self.stored[number][j][1] for j in seen)
            attended.append(block.attend(query, keys, values))
        self.rows_computed[number] += len(rows)
        return dict(zip(rows, block.finish(hidden, _stacked(attended)), strict=True))

    # Where rounding decides

    def _note_cut(self, ranked: list[int], count: int) -> None:
        """Remember where a ranking was cut, unless protection decides there."""
        if 0 < count < len(ranked):
            last, first_out = ranked[count - 1], ranked[count]
            if (last in self._protected) == (first_out in self._protected):
                self._cuts.append((last, first_out))

    def _settle(
        self, s: int, chosen: set[int], follow: Sequence[Collection[int]] | None
    ) -> set[int]:
        """A_s: the own choice, or another one that differs by rounding alone."""
        scores = self.pooled[s]
        self.margin[s] = min((_gap(scores[a], scores[b]) for a, b in self._cuts), default=math.inf)
        if follow is None or set(follow[s - 1]) == chosen:
            return chosen
        undecided: set[int] = set()
        for last, first_out in self._cuts:
            if _gap(scores[last], scores[first_out]) >= ROUNDING:
                continue
            near = {j for j in scores if _gap(scores[j], scores[last]) < ROUNDING}
            # Neighbours that pool one token's score are equal, whatever is rounded: a tie, which
            # goes to the lower index.
            if len({self._source[j] for j in near}) > 1:
                undecided |= near
        other = set(follow[s - 1])
        return other if (other ^ chosen) <= undecided else chosen

    # Small parts

    def _positions(self, rows: Iterable[int]) -> list[int]:
        return [self.position[index] for index in rows]

    def _logits(self, rows: dict[int, Tensor]) -> Tensor:
        logits = self.model.lm_head(self.model.model.norm(_stacked(rows.values())))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _stacked(rows: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(rows))


def _gap(a: float, b: float) -> float:
    """Relative difference of two scores."""
    if a == b or abs(a - b) < _TINY:
        return 0.0
    return math.inf if math.isinf(a) or math.isinf(b) else abs(a - b) / max(abs(a), abs(b))


def _probabilities(query: Tensor, logits: Tensor) -> Tensor:
    """softmax [heads, N] in which a NaN stays where it is.

    A key whose logit is NaN or +inf takes no part in the softmax, and its own probability is NaN. A
    head whose query holds a NaN says nothing about any key.
    """
    broken = logits.isnan() | logits.isposinf()
    heads = ~query.isnan().any(dim=-1, keepdim=True)  # [heads, 1]
    alone = logits.masked_fill(broken, -torch.inf)
    probabilities = alone.softmax(dim=-1).nan_to_num(0.0).masked_fill(broken, torch.nan)
    return torch.where(heads, probabilities, 0.0)
