"""A measurement as tables, for a terminal and as Markdown, and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from lazyllm_ext.lab.tools.files import write_pair
from lazyllm_ext.lab.tools.tables import markdown, number, table_of, table_of_cells

from .parts import PARTS, shares

_PART_NAMES = {
    "projections_mlp": "projections + MLP %",
    "attention": "attention %",
    "scoring": "scoring %",
    "selection": "selection %",
    "rest": "rest %",
}


def tables(result: dict[str, Any]) -> list[Table]:
    """Speed of every length, where the time goes, memory, and growth over the lengths."""
    request = result["request"]
    title = f"{Path(request['model']).name}, {request['dtype']}, {request['device']}"
    found = []
    for entry in result["lengths"]:
        found.append(_speed(f"{title}, {entry['tokens']} tokens", entry["rows"]))
    found.append(_parts(f"{title}: where TTFT goes", result["lengths"]))
    found.append(_memory(f"{title}: memory", result["lengths"]))
    if "growth" in result:
        found.append(_growth(f"{title}: TTFT over the prompt's length", result["growth"]))
        found.append(_exponents(f"{title}: p of time ~ tokens^p", result["growth"]))
    return found


def _speed(title: str, rows: dict[str, Any]) -> Table:
    lines = []
    for name, row in rows.items():
        # `dense` is what the kernels do alone; the same factor is in every other row.
        kernels = number(rows["dense"]["ttft_transformers_over_this"], 2) if _ours(name) else ""
        pruning = number(row["ttft_dense_over_this"], 2) if _ours(name) else ""
        lines.append(
            [
                ("", name),
                ("TTFT s", number(row["ttft_s"]["median"], 2)),
                ("spread", _spread(row["ttft_s"], 1, 2)),
                ("kernels", kernels),
                ("pruning", pruning),
                ("both", number(row["ttft_transformers_over_this"], 2)),
                ("of the ideal", number(row.get("of_ideal"), 2)),
                ("ms per token", number(row["decode_s_per_token"]["median"], 1, 1e3)),
                ("spread", _spread(row["decode_s_per_token"], 1e3, 1)),
                ("decoding, both", number(row["decode_transformers_over_this"], 2)),
                ("generation s", number(row["generation_s"]["median"], 2)),
                ("generation, both", number(row["generation_transformers_over_this"], 2)),
            ]
        )
    return table_of_cells(title, lines)


def _parts(title: str, lengths: list[dict[str, Any]]) -> Table:
    lines = []
    for entry in lengths:
        for name, row in entry["rows"].items():
            if "parts_s" in row:
                share = shares(row)
                figures = [number(share[part], 2, 100) for part in PARTS]
                lines.append([str(entry["tokens"]), name, *figures])
    return table_of(title, ["tokens", "", *_PART_NAMES.values()], lines)


def _memory(title: str, lengths: list[dict[str, Any]]) -> Table:
    lines = []
    for entry in lengths:
        base = entry["rows"]["transformers"]
        for name, row in entry["rows"].items():
            stored = row["kv_bytes"] + row["aux_bytes"]
            peak, base_peak = row.get("peak_bytes"), base.get("peak_bytes")
            lines.append(
                [
                    ("tokens", str(entry["tokens"])),
                    ("", name),
                    ("KV MB", number(row["kv_bytes"], 1, 1e-6)),
                    ("Aux MB", number(row["aux_bytes"], 1, 1e-6)),
                    ("KV + Aux ÷ transformers' KV", number(stored / base["kv_bytes"], 2)),
                    ("held ÷ needed", number(row["held_over_needed"], 3) if _ours(name) else ""),
                    ("peak of prefill MB", number(peak, 0, 1e-6)),
                    (
                        "peak ÷ transformers'",
                        number(peak / base_peak, 2) if peak and base_peak else "",
                    ),
                ]
            )
    return table_of_cells(title, lines)


def _growth(title: str, growths: dict[str, Any]) -> Table:
    lines = []
    for name, growth in growths.items():
        fit = growth["fit"] or {}
        lines.append(
            [
                ("", name),
                ("constant s", number(fit.get("constant"), 3)),
                ("µs per token", number(fit.get("linear"), 1, 1e6)),
                ("ns per token²", number(fit.get("quadratic"), 3, 1e9)),
                ("worst error %", number(fit.get("worst"), 1, 100)),
                ("quadratic % at the longest", number(growth["quadratic_share"], 1, 100)),
                ("attention % there", number(growth["attention_share"], 1, 100)),
                ("linear GFLOP/s there", number(growth.get("linear_gflop_per_s"), 1)),
                ("attention GFLOP/s there", number(growth.get("attention_gflop_per_s"), 1)),
            ]
        )
    return table_of_cells(title, lines)


def _exponents(title: str, growths: dict[str, Any]) -> Table:
    keys = ["ttft", "operations", *PARTS]
    lines = [
        [name, *(number(growth["exponents"].get(key), 2) for key in keys)]
        for name, growth in growths.items()
    ]
    names = [name.removesuffix(" %") for name in _PART_NAMES.values()]
    return table_of(title, ["", "TTFT", "operations", *names], lines)


def ceilings_table(ceilings: dict[str, float]) -> Table:
    """What the machine reached at best in the same run."""
    line = [number(value, 1) for value in ceilings.values()]
    header = ["copy GB/s", "float32 product GFLOP/s", "bfloat16 product GFLOP/s"]
    return table_of("the machine's ceilings", header, [line])


def write(
    stem: Path, command: str, result: dict[str, Any], shown: list[Table], figures: list[Path]
) -> None:
    """`stem`.json, and `stem`.md with the machine, the tables and the figures.

    Raises:
        OSError: the files cannot be written.
    """
    lines = [f"# {stem.name}", "", f"`{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in result["machine"].items()]
    for table in shown:
        lines += ["", f"## {table.title}", "", *markdown(table)]
    for figure in figures:
        lines += ["", f"![{figure.stem}]({figure.name})"]
    write_pair(stem, {"command": command, **result}, lines)


def _ours(name: str) -> bool:
    return name not in ("transformers", "compiled")


def _spread(values: dict[str, float], factor: float, places: int) -> str:
    return f"{values['min'] * factor:.{places}f}–{values['max'] * factor:.{places}f}"
