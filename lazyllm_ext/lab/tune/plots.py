"""The plots of a tuning, with matplotlib (extra `lab`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lazyllm_ext.lab.tools.figures import finish, panels, save

from .tuner import Trial, Tuning

_WIDTH, _HEIGHT = 7, 5  # inches


def plot_frontier(tuning: Tuning, frontier: Sequence[Trial], title: str, path: Path) -> Path:
    """KL against operations of everything that was run; the frontier is a line."""
    figure, [panel] = panels(1, _WIDTH, _HEIGHT)
    whole = [trial for trial in tuning.trials if trial.prompts == trial.of]
    broken = [trial for trial in tuning.trials if trial.prompts < trial.of]
    panel.plot(*_points(whole), "o", color="tab:blue", label="run on all prompts")
    if broken:
        panel.plot(*_points(broken), "^", color="tab:gray", mfc="none", label="given up: at least")
    panel.plot(*_points(frontier), "-", color="tab:blue", alpha=0.6, label="frontier")
    for trial in frontier:  # aslant below their points, so that neighbours do not meet
        panel.annotate(
            str(trial.candidate), _point(trial), fontsize=6, xytext=(-1, -4),
            textcoords="offset points", rotation=40, ha="right", va="top", rotation_mode="anchor",
        )  # fmt: skip
    for name, outcome, mark in (("tuned on", tuning.tuned, "*"), ("checked", tuning.checked, "X")):
        if outcome is not None:
            share = 100 * outcome.operations / outcome.dense_operations
            panel.plot([share], [outcome.kl], mark, ms=10, color="tab:red", label=f"chosen, {name}")
    panel.axhline(tuning.wish.bound, color="black", lw=0.8, ls="--", label="bound")
    # Linear near 0, so that the dense model and what is lossless have a place.
    panel.set_yscale("symlog", linthresh=max(tuning.wish.bound / 10, 1e-4))
    panel.set_ylim(bottom=0)
    finish(panel, "operations of a prefill, % of dense", "KL(dense ‖ schedule), nats", legend=7)
    return save(figure, title, path)


def plot_recall(tuning: Tuning, title: str, path: Path) -> Path:
    """The curves by layer, with the layers that were tried."""
    figure, [panel] = panels(1, _WIDTH, _HEIGHT)
    layers = [recall.layer for recall in tuning.curve]
    panel.plot(layers, [r.mass for r in tuning.curve], "-o", ms=3, label="later attention")
    panel.plot(layers, [r.top for r in tuning.curve], "-o", ms=3, label="its top tokens")
    for layer in tuning.layers:
        panel.axvline(layer, color="black", lw=0.5, ls=":")
    panel.set_ylim(0, 1.03)
    finish(panel, "layer (dotted: tried)", "found in the best fifth by scores")
    return save(figure, title, path)


def _point(trial: Trial) -> tuple[float, float]:
    return 100 * trial.outcome.operations / trial.outcome.dense_operations, trial.least_kl


def _points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    points = [_point(trial) for trial in trials]
    return [x for x, _ in points], [y for _, y in points]
