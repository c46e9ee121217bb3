"""Figures with matplotlib (extra `lab`), without pyplot, which would look for a display."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

_DPI = 150


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raises ValueError, with what to install, where there is no matplotlib."""
    if not can_draw():
        raise ValueError(
            "plots: expected matplotlib; install it with pip install 'lazyllm-ext[lab]'"
        )


def panels(
    count: int, width: float, height: float, columns: int | None = None
) -> tuple[Any, list[Any]]:
    """A figure of `count` panels.

    Args:
        width, height: of a panel, in inches.
        columns: so many panels are in a row at most; None for all of them.

    Returns:
        The figure and its panels, matplotlib's Axes.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    columns = min(count, columns or count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def finish(panel: Any, x: str, y: str, legend: float | None = 8) -> None:
    """Name the axes, add a grid and, in letters of the size `legend`, what each line is."""
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.grid(alpha=0.3)
    if legend is not None:
        panel.legend(fontsize=legend)


def save(figure: Any, title: str, path: Path) -> Path:
    """Write the figure under its title; returns the path."""
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)
    return path
