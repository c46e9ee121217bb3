"""What `lazyllm-ext generate` found: tables for people, JSON for machines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lazyllm_ext.lab.tools.tables import table_of

if TYPE_CHECKING:
    from lazyllm_ext.hf import Report

    from .generation import TimedAnswer


@dataclass(frozen=True)
class GenerationReport:
    """Everything that is shown."""

    model: str
    dtype: str  # of the weights
    device: str
    schedule: str
    computed: Report  # what LazyLLM computed
    lazy: TimedAnswer  # LazyLLM's answer
    dense: TimedAnswer | None  # the dense model's; None where it was not compared

    @property
    def dense_kv_bytes(self) -> int:
        """Of the dense cache: its own if there is one, else what the same tokens would need."""
        measured = self.dense.kv_bytes if self.dense else None
        return self.computed.dense_kv_bytes if measured is None else measured

    @property
    def stages(self) -> list[dict[str, Any]]:
        """For every stage its first and last layer, and the tokens whose keys and values exist."""
        ends = [*self.computed.boundary_layers, len(self.computed.tokens_per_layer) - 1]
        firsts = [0, *(end + 1 for end in self.computed.boundary_layers)]
        counts = self.computed.tokens_per_stage
        return [
            {"first_layer": first, "last_layer": last, "tokens": tokens}
            for first, last, tokens in zip(firsts, ends, counts, strict=True)
        ]

    def to_json(self) -> str:
        """One JSON object on one line."""
        computed = self.computed.to_dict()
        dense = None
        if self.dense is not None:
            dense = {**_answer(self.dense), "kv_bytes": self.dense_kv_bytes}
        data = {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "schedule": self.schedule,
            "prompt_tokens": computed["prompt_tokens"],
            "lazy": {
                **_answer(self.lazy),
                "stages": self.stages,
                "prompt_computed_percent": computed["prompt_computed_percent"],
                "revived_per_boundary": computed["revived_per_boundary"],
                "kv_bytes": computed["kv_bytes"],
                "aux_bytes": computed["aux_bytes"],
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


def _answer(answer: TimedAnswer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "new_tokens": len(answer.tokens),
        "ttft_seconds": answer.ttft,
        "decode_tokens_per_second": answer.tokens_per_second,
    }


def show_tables(report: GenerationReport) -> None:
    """Print what was computed, and how fast, on standard output."""
    console = Console(highlight=False)
    console.print(_tokens(report))
    console.print()
    console.print(_figures(report))


def _tokens(report: GenerationReport) -> Table:
    computed = report.computed
    title = (
        f"{report.model}, {report.dtype}, {report.device}: "
        f"{computed.prompt_tokens:,} prompt tokens, schedule {report.schedule}"
    )
    lines = [
        [
            str(number),
            f"{stage['first_layer']}–{stage['last_layer']}",
            f"{stage['tokens']:,}",
            f"{stage['tokens'] / computed.tokens_total:.0%}",
            f"{computed.revived_per_boundary[number - 1]:,}" if number else "",
        ]
        for number, stage in enumerate(report.stages)
    ]
    header = ["stage", "layers", "tokens computed", "of all", "revived on entry"]
    return table_of(escape(title), header, lines)


def _figures(report: GenerationReport) -> Table:
    computed, lazy, dense = report.computed, report.lazy, report.dense
    table = table_of(None, ["", "LazyLLM", "dense", "LazyLLM is"], [])
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
    stored = computed.kv_bytes + computed.aux_bytes
    saved = f"{stored / report.dense_kv_bytes:.0%} of it"
    table.add_row("keys and values", _size(computed.kv_bytes), _size(report.dense_kv_bytes), "")
    table.add_row("waiting tokens (Aux Cache)", _size(computed.aux_bytes), "", "")
    table.add_row("both", _size(stored), _size(report.dense_kv_bytes), saved)
    table.add_row("prompt computed", f"{computed.prompt_computed_percent:.0f} %", "100 %", "")
    if dense is not None:
        table.add_row("same answer", "yes" if report.same_answer else "no", "", "")
    return table


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB"
