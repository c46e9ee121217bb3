"""The plots of a report, with matplotlib (extra `eval`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .results import Record
from .summary import ALL, heading

if TYPE_CHECKING:
    from .report import Report

_DPI = 150


def require_matplotlib() -> None:
    """Raises ValueError, with what to install, where there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise ValueError(
            "plots: expected matplotlib; install it with pip install 'lazyllm-ext[eval]'"
        )


def plot_score_against_ttft(report: Report, path: Path) -> Path:
    """The mean over categories against the speed-up of the first token, one panel a length."""
    figure, panels = _panels(len(report.lengths))
    for panel, length in zip(panels, report.lengths, strict=True):
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
        panel.set_xlabel(f"TTFT, {report.against} ÷ this")
        panel.set_ylabel("score × 100, mean of categories")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    return _save(figure, report.title, path)


def plot_kept_tokens(report: Report, path: Path) -> Path | None:
    """The part of tokens that is kept, over the prompt, one panel a contender and kind of items.

    Returns None, and draws nothing, where no contender drops tokens.
    """
    groups: dict[str, list[Record]] = {}
    for contender in report.contenders:
        for record in report.records:
            if record.contender == contender.name and record.profile:
                kind = contender.kind(record.task, record.category)
                title = ": ".join(filter(None, (contender.name, kind)))
                groups.setdefault(title, []).append(record)
    if not groups:
        return None
    figure, panels = _panels(len(groups))
    for panel, (title, records) in zip(panels, groups.items(), strict=True):
        _draw_kept(panel, title, records)
    return _save(figure, report.title, path)


def _draw_kept(panel: Any, title: str, records: Sequence[Record]) -> None:
    """One panel: for each layer the mean over the records, which are of one schedule."""
    for entry, layer in enumerate(_layers(records[0])):
        shares = torch.tensor([r.profile[entry]["shares"] for r in records]).mean(dim=0)
        places = (torch.arange(shares.numel()) + 0.5) * 100 / shares.numel()
        label = "before the model" if layer < 0 else f"from layer {layer}"
        panel.step(places.tolist(), (100 * shares).tolist(), where="mid", label=label)
    panel.set_title(title)
    panel.set_ylim(0, 103)
    panel.set_xlabel("place in the prompt, %")
    panel.set_ylabel("tokens kept, %")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def _layers(record: Record) -> list[int]:
    return [entry["layer"] for entry in record.profile]


def _panels(count: int) -> tuple[Any, list[Any]]:
    require_matplotlib()
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.8 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in panels[count:]:
        spare.set_visible(False)
    return figure, panels[:count]


def _save(figure: Any, title: str, path: Path) -> Path:
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)
    return path
