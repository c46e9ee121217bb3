"""The plots of a report, with matplotlib (extra `lab`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lazyllm_ext.lab.tools.figures import finish, panels, save

from .results import Record
from .summary import ALL, EvaluationReport, heading

_WIDTH, _HEIGHT, _COLUMNS = 4.8, 3.8, 3  # inches, of one panel


def plot_score_against_ttft(report: EvaluationReport, path: Path) -> Path:
    """The mean over categories against the speed-up of the first token, one panel a length."""
    figure, places = panels(len(report.lengths), _WIDTH, _HEIGHT, _COLUMNS)
    for panel, length in zip(places, report.lengths, strict=True):
        rows = [row for row in report.at(length) if row.category == ALL]
        for row in rows:
            # The interval is the difference's; it stands around the score that it belongs to.
            around = None
            if row.interval is not None:
                below, above = row.difference - row.interval[0], row.interval[1] - row.difference
                around = [[100 * max(0.0, below)], [100 * max(0.0, above)]]
            panel.errorbar(
                row.ttft_speedup,
                100 * row.score,
                yerr=around,
                marker="o",
                capsize=3,
                label=row.contender,
            )
        panel.set_title(heading(length))
        finish(panel, f"TTFT, {report.against} ÷ this", "score × 100, mean of categories")
    return save(figure, report.title, path)


def plot_kept_tokens(report: EvaluationReport, path: Path) -> Path | None:
    """The part of tokens that is kept, over the prompt, one panel a contender and kind of items.

    Returns None, and draws nothing, where no contender drops tokens.
    """
    groups: dict[str, list[Record]] = {}
    for contender in report.contenders:
        for record in report.records:
            if record.contender == contender.name and record.profile:
                title = contender.title(record.task, record.category)
                groups.setdefault(title, []).append(record)
    if not groups:
        return None
    figure, places = panels(len(groups), _WIDTH, _HEIGHT, _COLUMNS)
    for panel, (title, records) in zip(places, groups.items(), strict=True):
        _draw_kept(panel, title, records)
    return save(figure, report.title, path)


def _draw_kept(panel: Any, title: str, records: Sequence[Record]) -> None:
    """One panel: for each layer the mean over the records, which are of one schedule."""
    for entry, drop in enumerate(records[0].profile):
        layer = drop["layer"]
        shares = torch.tensor([r.profile[entry]["shares"] for r in records]).mean(dim=0)
        places = (torch.arange(shares.numel()) + 0.5) * 100 / shares.numel()
        label = "before the model" if layer < 0 else f"from layer {layer}"
        panel.step(places.tolist(), (100 * shares).tolist(), where="mid", label=label)
    panel.set_title(title)
    panel.set_ylim(0, 103)
    finish(panel, "place in the prompt, %", "tokens kept, %")
