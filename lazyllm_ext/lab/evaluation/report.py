"""A finished evaluation as files: report.json, report.md and the plots."""

from __future__ import annotations

import os
from pathlib import Path

from lazyllm_ext.files import write_text
from lazyllm_ext.lab.tools.files import os_error_as, write_json
from lazyllm_ext.lab.tools.tables import left_out, markdown_table, number

from .plots import plot_kept_tokens, plot_score_against_ttft
from .summary import ALL, EvaluationReport, Row, heading


def cells(row: Row, against: str) -> dict[str, str]:
    """The columns of one row, by heading; scores and differences × 100."""
    difference = "" if row.contender == against else f"{100 * row.difference:+.2f}"
    if difference and row.interval is not None:
        low, high = row.interval
        difference += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
    return {
        "category": "mean of categories" if row.category == ALL else row.category,
        "contender": row.contender,
        "items": str(row.items),
        "score": f"{100 * row.score:.2f}",
        "relative": number(row.relative, 3),
        "difference [95 %]": difference,
        "TTFT speed-up": f"{row.ttft_speedup:.2f}",
        "generation speed-up": number(row.generation_speedup, 2),
        "% of prompt computed": f"{row.computed_percent:.2f}",
        "operations ratio": f"{row.operations_ratio:.2f}",
        "same first token": f"{100 * row.same_first_token:.0f} %",
        "KL": f"{row.kl:.4f}",
    }


def to_markdown(report: EvaluationReport) -> str:
    """The report's tables, one for each length, and one for all of them."""
    lines = [f"# {report.title}", ""]
    lines += [
        f"Compared with `{report.against}`: differences of scores × 100 with 95 % intervals "
        "(paired bootstrap; none where a task has one item), speed-ups as medians over the items, "
        "ratios of operations as means.",
        "",
    ]
    for length in report.lengths:
        rows = [cells(row, report.against) for row in report.at(length)]
        table = markdown_table([*rows[0]], [[*row.values()] for row in rows], names=2)
        lines += [f"## {heading(length)}", "", *table, ""]
    return "\n".join([*lines, *left_out(report.skipped)])


def write_report(report: EvaluationReport, folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.json, report.md, score_vs_ttft.png and kept_tokens.png; returns their paths.

    Raises:
        ValueError: matplotlib is not installed, or the folder cannot be written.
    """
    place = Path(folder)
    written = [place / "report.json", place / "report.md"]
    with os_error_as(f"output: cannot write to {str(folder)!r}"):
        write_json(written[0], report.to_dict())
        write_text(written[1], to_markdown(report))
    written.append(plot_score_against_ttft(report, place / "score_vs_ttft.png"))
    kept = plot_kept_tokens(report, place / "kept_tokens.png")
    return written if kept is None else [*written, kept]
