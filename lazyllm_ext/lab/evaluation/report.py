"""A finished evaluation as files: report.json, report.md and the plots."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .contenders import Contender
from .results import Record
from .summary import ALL, Length, Row, heading, summarize

HEADINGS = (
    "category",
    "contender",
    "items",
    "score",
    "relative",
    "difference [95 %]",
    "TTFT speed-up",
    "generation speed-up",
    "% of prompt computed",
    "operations ratio",
    "same first token",
    "KL",
)


@dataclass(frozen=True)
class Report:
    """Everything that is shown.

    Attributes:
        model: its name.
        setting: dtype, device and how prompts were made.
        against: the contender that the others are compared with.
        contenders: all of them.
        skipped: sentences, one for every line or item that was left out.
        records: finished ones.
        rows: see `summary.summarize`.
    """

    model: str
    setting: Mapping[str, Any]
    against: str
    contenders: Sequence[Contender]
    skipped: Sequence[str]
    records: Sequence[Record]
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.setting['dtype']}, {self.setting['device']}"

    @property
    def lengths(self) -> list[Length]:
        """Nominal lengths, ascending, then `all` if there are several."""
        return list(dict.fromkeys(row.length for row in self.rows))

    def at(self, length: Length) -> list[Row]:
        """The rows of one length."""
        return [row for row in self.rows if row.length == length]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the records, which are in a file of their own."""
        return {
            "model": self.model,
            "setting": dict(self.setting),
            "against": self.against,
            "contenders": [
                {"name": contender.name, **contender.identity} for contender in self.contenders
            ],
            "skipped": list(self.skipped),
            "rows": [asdict(row) for row in self.rows],
        }


def make_report(
    model: str,
    setting: Mapping[str, Any],
    contenders: Sequence[Contender],
    against: str,
    records: Sequence[Record],
    skipped: Sequence[str],
) -> Report:
    """The report of these records, each contender against one of them."""
    rows = summarize(records, [contender.name for contender in contenders], against)
    return Report(model, setting, against, contenders, skipped, records, rows)


def cells(row: Row, against: str) -> list[str]:
    """The columns of HEADINGS for one row; scores and differences × 100."""
    difference = "" if row.contender == against else f"{100 * row.difference:+.2f}"
    if difference and row.interval is not None:
        low, high = row.interval
        difference += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
    generation = row.generation_speedup
    return [
        "mean of categories" if row.category == ALL else row.category,
        row.contender,
        str(row.items),
        f"{100 * row.score:.2f}",
        "" if row.relative is None else f"{row.relative:.3f}",
        difference,
        f"{row.ttft_speedup:.2f}",
        "" if generation is None else f"{generation:.2f}",
        f"{row.computed_percent:.2f}",
        f"{row.operations_ratio:.2f}",
        f"{100 * row.same_first_token:.0f} %",
        f"{row.kl:.4f}",
    ]


def to_markdown(report: Report) -> str:
    """The report's tables, one for each length, and one for all of them."""
    lines = [f"# {report.title}", ""]
    lines += [
        f"Compared with `{report.against}`: differences of scores × 100 with 95 % intervals "
        "(paired bootstrap; none where a task has one item), speed-ups as medians over the items, "
        "ratios of operations as means.",
        "",
    ]
    for length in report.lengths:
        lines += [f"## {heading(length)}", ""]
        lines.append("| " + " | ".join(HEADINGS) + " |")
        lines.append("|" + " --- |" * 2 + " ---: |" * (len(HEADINGS) - 2))
        for row in report.at(length):
            lines.append("| " + " | ".join(map(_escaped, cells(row, report.against))) + " |")
        lines.append("")
    if report.skipped:
        lines += [f"Left out: {len(report.skipped)}.", ""]
        lines += [f"- {_escaped(sentence)}" for sentence in report.skipped]
        lines.append("")
    return "\n".join(lines)


def write_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.json, report.md, score_vs_ttft.png and kept_tokens.png; returns their paths.

    Raises:
        ValueError: matplotlib is not installed, or the folder cannot be written.
    """
    from .plots import plot_kept_tokens, plot_score_against_ttft

    place = Path(folder)
    texts = {
        "report.json": json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "report.md": to_markdown(report),
    }
    try:
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"output: cannot write to {str(folder)!r}: {error.strerror}") from error
    written = [place / name for name in texts]
    written.append(plot_score_against_ttft(report, place / "score_vs_ttft.png"))
    kept = plot_kept_tokens(report, place / "kept_tokens.png")
    return written if kept is None else [*written, kept]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
