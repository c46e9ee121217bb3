"""The outcome of a generation: tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from lazyllm_ext.hf import Report

    from .generate import Answer

_SHOWN_FAULTS = 10


def say_skipped(faults: Sequence[str], what: str) -> None:
    """What of the input was passed over, on stderr: the first ones, and how many."""
    for fault in faults[:_SHOWN_FAULTS]:
        print(f"lazyllm-ext: skipped: {fault}", file=sys.stderr)
    if faults:
        print(f"lazyllm-ext: {what} skipped: {len(faults)}", file=sys.stderr)


@dataclass(frozen=True)
class Outcome:
    """Everything that is shown; `dense` only where it was compared."""

    model: str
    dtype: str
    device: str
    schedule: str
    report: Report
    lazy: Answer
    dense: Answer | None

    @property
    def dense_kv_bytes(self) -> int:
        """Of the dense cache: its own if there is one, else what the same tokens would need."""
        measured = self.dense.kv_bytes if self.dense else None
        return self.report.dense_kv_bytes if measured is None else measured

    @property
    def stages(self) -> list[dict[str, Any]]:
        """For every stage its first and last layer, and the tokens whose keys and values exist."""
        ends = [*self.report.boundary_layers, len(self.report.tokens_per_layer) - 1]
        firsts = [0, *(end + 1 for end in self.report.boundary_layers)]
        counts = self.report.tokens_per_stage
        return [
            {"first_layer": first, "last_layer": last, "tokens": tokens}
            for first, last, tokens in zip(firsts, ends, counts, strict=True)
        ]

    def to_json(self) -> str:
        """One JSON object on one line."""
        report = self.report.to_dict()
        dense = None
        if self.dense is not None:
            dense = {**_answer(self.dense), "kv_bytes": self.dense_kv_bytes}
        data = {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "schedule": self.schedule,
            "prompt_tokens": report["prompt_tokens"],
            "lazy": {
                **_answer(self.lazy),
                "stages": self.stages,
                "prompt_computed_percent": report["prompt_computed_percent"],
                "revived_per_boundary": report["revived_per_boundary"],
                "kv_bytes": report["kv_bytes"],
                "aux_bytes": report["aux_bytes"],
            },
            "dense": dense,
            "dense_kv_bytes": self.dense_kv_bytes,
            "same_answer": None if self.dense is None else self.same_answer,
        }
        return json.dumps(data)

    @property
    def same_answer(self) -> bool:
        """Whether both gave the same tokens."""
        return self.dense is not None and self.dense.tokens == self.lazy.tokens


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "new_tokens": len(answer.tokens),
        "ttft_seconds": answer.ttft,
        "decode_tokens_per_second": answer.tokens_per_second,
    }


def tables(outcome: Outcome) -> None:
    """Print what was computed, and how fast, on standard output."""
    console = Console(highlight=False)
    console.print(_tokens(outcome))
    console.print()
    console.print(_figures(outcome))


def _tokens(outcome: Outcome) -> Table:
    report = outcome.report
    table = Table(
        title=escape(
            f"{outcome.model}, {outcome.dtype}, {outcome.device}: "
            f"{report.prompt_tokens:,} prompt tokens, schedule {outcome.schedule}"
        ),
        title_justify="left",
    )
    for name in ("stage", "layers", "tokens computed", "of all", "revived on entry"):
        table.add_column(name, justify="right")
    for number, stage in enumerate(outcome.stages):
        revived = f"{report.revived_per_boundary[number - 1]:,}" if number else ""
        table.add_row(
            str(number),
            f"{stage['first_layer']}–{stage['last_layer']}",
            f"{stage['tokens']:,}",
            f"{stage['tokens'] / report.tokens_total:.0%}",
            revived,
        )
    return table


def _figures(outcome: Outcome) -> Table:
    report, lazy, dense = outcome.report, outcome.lazy, outcome.dense
    table = Table()
    for name in ("", "LazyLLM", "dense", "LazyLLM is"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row(
        "time to first token",
        f"{lazy.ttft:.2f} s",
        f"{dense.ttft:.2f} s" if dense else "",
        f"{dense.ttft / lazy.ttft:.2f}× as fast" if dense else "",
    )
    if lazy.tokens_per_second:
        other = dense.tokens_per_second if dense else None
        table.add_row(
            "decoding",
            f"{lazy.tokens_per_second:.1f} tokens/s",
            f"{other:.1f} tokens/s" if other else "",
            f"{lazy.tokens_per_second / other:.2f}× as fast" if other else "",
        )
    stored = report.kv_bytes + report.aux_bytes
    saved = f"{stored / outcome.dense_kv_bytes:.0%} of it"
    table.add_row("keys and values", _size(report.kv_bytes), _size(outcome.dense_kv_bytes), "")
    table.add_row("waiting tokens (Aux Cache)", _size(report.aux_bytes), "", "")
    table.add_row("both", _size(stored), _size(outcome.dense_kv_bytes), saved)
    table.add_row("prompt computed", f"{report.prompt_computed_percent:.0f} %", "100 %", "")
    if dense is not None:
        table.add_row("same answer", "yes" if outcome.same_answer else "no", "", "")
    return table


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB"
