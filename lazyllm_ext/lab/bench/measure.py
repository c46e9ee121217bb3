"""The measurement: for every prompt length all contenders, verified, profiled, timed, weighed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.lab.tools.cost import prefill_operations
from lazyllm_ext.lab.tools.machine import ceilings, describe
from lazyllm_ext.lab.tools.timing import interleave, ratio, spread

from .fit import growth
from .memory import peak_bytes
from .model import Model, TimedGeneration
from .parts import profile_prefill
from .request import BenchRequest
from .verify import verify_dense

_WARM_UP_TOKENS = 64


def measure(
    request: BenchRequest, verify_more: Callable[[Model, str], None] = lambda model, schedule: None
) -> dict[str, Any]:
    """Everything that the request asks for, as JSON takes it.

    Args:
        verify_more: called with each schedule before anything is timed; raises where it finds a
            wrong result. `dense` is compared with transformers in any case.

    Raises:
        ValueError: a prompt longer than the model's context, or a model that is not supported.
        BenchError: a result that is wrong, or a process that failed.
    """
    say = Console(stderr=True).print
    model = Model(request.model, request.dtype, request.device)
    model.check_context(request)
    if model.own_settings:
        say(model.own_settings, markup=False)
    say(f"verifying {', '.join(request.schedules)}")
    ids = model.prompt(request.lengths[0])[None]
    verify_dense(model, ids, torch.ones_like(ids))
    for schedule in request.schedules:
        verify_more(model, schedule)
    result: dict[str, Any] = {
        "machine": describe(request.device),
        "ceilings": ceilings(request.device),
        "request": asdict(request),
        "lengths": [],
    }
    failed = _compile(model, request) if request.compiled else {}
    contenders = [name for name in request.contenders if name not in failed.get("errors", {})]
    for tokens, rounds in request.rounds_of_length.items():
        rows = _measure_length(model, contenders, tokens, rounds, request)
        result["lengths"].append({"tokens": tokens, "rounds": rounds, "rows": rows})
    if failed:
        result["compile"] = failed
    if len(request.lengths) > 1:
        result["growth"] = {
            name: growth(request.lengths, [entry["rows"][name] for entry in result["lengths"]])
            for name in contenders
        }
    return result


def _compile(model: Model, request: BenchRequest) -> dict[str, Any]:
    """Seconds of the compiled model's first generation; the reason where there is no compiler."""
    try:
        first = model.generate("compiled", model.prompt(request.lengths[0]), request.new_tokens)
    except Exception as error:  # whatever TorchDynamo, Inductor or the C++ compiler raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        print(f"compiled: left out: {reason}", file=sys.stderr)
        return {"errors": {"compiled": reason}}
    return {"first_generation_s": first.generation}


def _measure_length(
    model: Model, contenders: list[str], tokens: int, rounds: int, request: BenchRequest
) -> dict[str, Any]:
    """One row per contender for a prompt of `tokens` tokens."""
    say = Console(stderr=True).print
    ids = model.prompt(tokens)
    rows: dict[str, dict[str, Any]] = {name: {} for name in contenders}
    say(f"{tokens} tokens: profile")
    for name in contenders:
        if name == "compiled":  # its ranges are inside of what the compiler fused
            model.generate(name, ids, request.new_tokens)
            continue
        model.generate(name, ids[:_WARM_UP_TOKENS], 1)
        parts, run = profile_prefill(model, name, ids)
        rows[name]["parts_s"] = parts
        rows[name]["operations"] = _operations(model, name, tokens, run)
    runs = interleave(
        {n: lambda n=n: model.generate(n, ids, request.new_tokens) for n in contenders},  # type: ignore[misc]
        rounds,
        warmup=0,  # the profiled prefill was it
        title=f"{tokens} tokens: {', '.join(contenders)}",
    )
    for name in contenders:
        rows[name].update(_times(name, runs), **_bytes(runs[name][-1]))
        if "operations" in rows[name] and name != "transformers":
            _add_ideal(rows[name], rows["dense"])
    if request.memory:
        for name in contenders:
            if name != "compiled":  # the compiler's own memory would count
                say(f"{tokens} tokens: peak memory of {name}")
                rows[name]["peak_bytes"] = peak_bytes(model, name, tokens)
    return rows


def _operations(model: Model, contender: str, tokens: int, run: TimedGeneration) -> dict[str, int]:
    """Operations of the prefill, by kind."""
    ours = contender != "transformers"
    decoder = LazyDecoder.from_model(model.model, contender if ours else "dense")
    last_rows = 1 if ours else tokens  # transformers finishes the last layer for every token
    return asdict(prefill_operations(decoder, tokens, run.kept or (), last_rows))


def _times(name: str, runs: dict[str, list[TimedGeneration]]) -> dict[str, Any]:
    """Medians and spreads, and the ratios to transformers and to `dense` in the same rounds."""
    row: dict[str, Any] = {}
    for field, key in (("ttft", "ttft_s"), ("per_token", "decode_s_per_token"),
                       ("generation", "generation_s")):  # fmt: skip
        values = {other: [getattr(run, field) for run in runs[other]] for other in runs}
        row[key] = spread(values[name])
        short = key.split("_")[0]
        row[f"{short}_transformers_over_this"] = ratio(values["transformers"], values[name])
        row[f"{short}_dense_over_this"] = ratio(values["dense"], values[name])
    return row


def _bytes(run: TimedGeneration) -> dict[str, Any]:
    held = run.kv_bytes + run.aux_bytes
    return {
        "kv_bytes": run.kv_bytes,
        "aux_bytes": run.aux_bytes,
        "held_over_needed": held / run.needed_bytes,
    }


def _add_ideal(row: dict[str, Any], dense: dict[str, Any]) -> None:
    """How much of the gain that fewer operations allow was reached; 1: all of it."""
    allowed = sum(dense["operations"].values()) / sum(row["operations"].values())
    row["of_ideal"] = row["ttft_dense_over_this"] / allowed
