"""What a generation did: how much was computed, how long it took, what is stored."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any

import torch

from lazyllm_ext.schedule import PruningSchedule
from lazyllm_ext.state import (
    LazyState,
    StoreSpec,
    aux_nbytes,
    computed,
    computed_per_stage,
    kv_nbytes,
    revived,
)

from .plan import Plan

# What a report does not know of a cache that was loaded.
_OF_A_TURN = (
    "prompt_tokens",
    "generated_tokens",
    "ttft_seconds",
    "decode_seconds",
    "decode_seconds_per_token",
    "decode_tokens_per_second",
    "revived_per_boundary",
)


@dataclass(frozen=True)
class SequenceReport:
    """The same of one sequence of a batch; see `Report`."""

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    tokens_total: int
    tokens_per_stage: list[int]
    prompt_computed_percent: float


@dataclass(frozen=True)
class Report:
    """What the latest prompt of a generation and the tokens after it did.

    Counts are sums over the sequences of a batch, padding excluded.

    Attributes:
        schedule: the schedule as JSON writes it.
        boundary_layers: the layers in which it dropped tokens.
        min_tokens: shorter contexts are not pruned; what was found where the schedule says "auto"
            (2,147,483,647 if dropping was not sooner at any length that was tried).
        sequences: size of the batch.
        prompt_tokens: new tokens of the prompt.
        cached_tokens: tokens that the cache held before the prompt.
        generated_tokens: the token that the prompt gave and those computed after it, of every
            sequence.
        ttft_seconds: from the entry of the prompt's forward to its logits; of a model that sees
            images, of the language model within alone.
        decode_seconds: from the prompt's logits to the last ones, the sampling between included.
        decode_seconds_per_token: of one token of each sequence; None where there was no step.
        decode_tokens_per_second: of all sequences together; None where there was none.
        tokens_total: tokens that the cache holds, computed or waiting.
        tokens_per_stage: tokens whose keys and values exist, for the stages 0 to S.
        tokens_per_layer: tokens whose whole layer was computed. A boundary layer is finished only
            for tokens that pass, the last layer only where logits are asked.
        prompt_computed_percent: mean over layers of the context's tokens (cached and prompt) whose
            whole layer was computed by now, in percent of the context.
        revived_per_boundary: tokens that this turn took out of each Aux Cache.
        kv_bytes, aux_bytes: memory of the stores, spare room included.
        dense_kv_bytes: what a dense cache needs for the same tokens, padding excluded.
        per_sequence: what can be said of every sequence by itself.
        unknown: the fields that nobody could count, and that are 0 or None. Of a cache that was
            loaded and not used since, all tokens are cached ones.
        refused: why transformers computed the dense model instead (`on_error="dense"`). Then
            LazyLLM did nothing: its counts are 0 and its times None.
    """

    schedule: dict[str, Any]
    boundary_layers: list[int] = field(default_factory=list)
    min_tokens: int = 0
    sequences: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ttft_seconds: float | None = None
    decode_seconds: float | None = None
    decode_seconds_per_token: float | None = None
    decode_tokens_per_second: float | None = None
    tokens_total: int = 0
    tokens_per_stage: list[int] = field(default_factory=list)
    tokens_per_layer: list[int] = field(default_factory=list)
    prompt_computed_percent: float = 0.0
    revived_per_boundary: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    aux_bytes: int = 0
    dense_kv_bytes: int = 0
    per_sequence: list[SequenceReport] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Report:
        """The report that `to_dict` or the JSON text of `to_json` says."""
        sequences = [SequenceReport(**entry) for entry in data["per_sequence"]]
        return Report(**{**data, "per_sequence": sequences})

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


@dataclass
class Turn:
    """Clock and counters of a prompt and the tokens generated after it."""

    started: float | None  # None: in another process
    cached_tokens: list[int]  # n of each sequence before the prompt
    revived: list[int]  # per boundary, before the prompt
    context_tokens: list[int] = field(default_factory=list)  # n of each sequence with the prompt
    # Tokens of each sequence that were computed to the end of the last layer, of all the context.
    finished: list[int] = field(default_factory=list)
    prompt_done: float = 0.0
    last_done: float = 0.0

    @staticmethod
    def begun(started: float, state: LazyState) -> Turn:
        """A prompt that the state is about to get."""
        return Turn(started, list(state.host_length), revived(state))

    @staticmethod
    def unknown(state: LazyState) -> Turn:
        """Stands for what filled a state that was loaded: all its tokens were there before."""
        lengths = list(state.host_length)
        return Turn(None, lengths, revived(state), lengths, list(state.finished))

    def end_prompt(self, state: LazyState, drafted: int) -> None:
        """The prompt is computed, and after it so many tokens that only may be generated ones."""
        device = state.length.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # once per generation: now the logits are there
        self.end_step()
        self.prompt_done = self.last_done
        self.context_tokens = [length - drafted for length in state.host_length]
        self.finished = list(state.finished)

    def end_step(self) -> None:
        """The tokens after it are computed so far."""
        self.last_done = perf_counter()

    def cropped(self, lengths: list[int]) -> Turn:
        """The same turn once every sequence has at most `lengths` tokens.

        Which tokens were finished is not stored, so their number becomes an upper bound.
        """
        context = list(map(min, self.context_tokens, lengths))
        return replace(
            self,
            cached_tokens=list(map(min, self.cached_tokens, lengths)),
            context_tokens=context,
            finished=list(map(min, self.finished, context)),
        )

    def of_sequences(self, order: list[int]) -> Turn:
        """The same turn of sequences order[0], order[1], …"""
        return replace(
            self,
            cached_tokens=[self.cached_tokens[place] for place in order],
            context_tokens=[self.context_tokens[place] for place in order],
            finished=[self.finished[place] for place in order],
        )


def make_report(plan: Plan, state: LazyState, turn: Turn) -> Report:
    """The report of a turn, from the state as it is now."""
    spec, stages = plan.spec, computed_per_stage(state)
    of_context = _context_per_stage(state, turn)
    sequences = [
        _of_sequence(b, spec, state, turn, stages, of_context)
        for b in range(len(state.host_length))
    ]
    per_stage = [sum(counts) for counts in stages]
    later = sum(state.host_length) - sum(turn.context_tokens)  # generated and computed
    ttft = seconds = None
    if turn.started is not None:
        ttft, seconds = turn.prompt_done - turn.started, turn.last_done - turn.prompt_done
    return Report(
        schedule=plan.schedule.to_dict(),
        boundary_layers=list(plan.boundary_layers),
        min_tokens=plan.min_tokens,
        sequences=len(sequences),
        prompt_tokens=sum(one.prompt_tokens for one in sequences),
        cached_tokens=sum(one.cached_tokens for one in sequences),
        generated_tokens=sum(one.generated_tokens for one in sequences),
        ttft_seconds=ttft,
        decode_seconds=seconds,
        decode_seconds_per_token=(
            None if seconds is None or not later else seconds * len(sequences) / later
        ),
        decode_tokens_per_second=later / seconds if seconds and later else None,
        tokens_total=sum(state.host_length),
        tokens_per_stage=per_stage,
        tokens_per_layer=_per_layer(spec, per_stage, sum(state.finished)),
        prompt_computed_percent=_percent(
            spec,
            [sum(counts) for counts in of_context],
            sum(turn.finished),
            sum(turn.context_tokens),
        ),
        revived_per_boundary=[
            now - before for now, before in zip(revived(state), turn.revived, strict=True)
        ],
        kv_bytes=kv_nbytes(state),
        aux_bytes=aux_nbytes(state),
        dense_kv_bytes=_dense_nbytes(spec, state),
        per_sequence=sequences,
        unknown=[] if turn.started is not None else list(_OF_A_TURN),
    )


def refused_report(reason: str) -> Report:
    """The report of what transformers computed instead."""
    return Report(PruningSchedule().to_dict(), refused=reason)


def _of_sequence(
    b: int,
    spec: StoreSpec,
    state: LazyState,
    turn: Turn,
    stages: list[list[int]],
    of_context: list[list[int]],
) -> SequenceReport:
    """Of sequence b; `stages` and `of_context` hold, per stage, a count of every sequence."""
    context, cached, length = turn.context_tokens[b], turn.cached_tokens[b], state.host_length[b]
    first = int(turn.started is not None)  # the token that the prompt gave
    return SequenceReport(
        prompt_tokens=context - cached,
        cached_tokens=cached,
        generated_tokens=length - context + first,
        tokens_total=length,
        tokens_per_stage=[counts[b] for counts in stages],
        prompt_computed_percent=_percent(
            spec, [counts[b] for counts in of_context], turn.finished[b], context
        ),
    )


def _context_per_stage(state: LazyState, turn: Turn) -> list[list[int]]:
    """How many tokens of each sequence's context (cached and prompt) are in C_0 … C_S."""
    return [
        [
            int((computed(state, stage, sequence) < length).sum())
            for sequence, length in enumerate(turn.context_tokens)
        ]
        for stage in range(len(state.slot))
    ]


def _percent(spec: StoreSpec, per_stage: list[int], finished: int, context: int) -> float:
    """Mean over layers of the tokens whose whole layer was computed, in percent of the context."""
    counts = _per_layer(spec, per_stage, finished)
    return 100.0 * sum(counts) / max(len(counts) * context, 1)


def _per_layer(spec: StoreSpec, per_stage: list[int], finished: int) -> list[int]:
    """|C_s| in the layers of stage s, |C_{s+1}| in its boundary layer, `finished` in the last."""
    counts: list[int] = []
    for stage, layers in enumerate(spec.stage_layers):
        counts += [per_stage[stage]] * (len(layers) - 1)
        counts.append(per_stage[stage + 1] if stage + 1 < len(per_stage) else finished)
    return counts


def _dense_nbytes(spec: StoreSpec, state: LazyState) -> int:
    numbers = sum(
        2 * heads * dim for heads, dim in zip(spec.num_kv_heads, spec.head_dim, strict=True)
    )
    return numbers * state.keys[0].element_size() * sum(state.host_length)
