"""What came of a tuning: the schedule's file, Markdown, JSON, plots."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lazyllm_ext.files import write_text
from lazyllm_ext.lab.evaluation.static import SCORING
from lazyllm_ext.lab.tools.files import os_error_as, write_json
from lazyllm_ext.lab.tools.tables import left_out, markdown_table

from .curves import KEEP, TOP_TOKENS
from .plots import plot_frontier, plot_recall
from .trial import Outcome
from .tuner import Trial, Tuning


def frontier(tuning: Tuning) -> list[Trial]:
    """The trials that no other one beats in both operations and KL, the cheapest first.

    Only those that were run on all prompts: of the others the KL is not known.
    """
    whole = [trial for trial in tuning.trials if trial.prompts == trial.of]
    whole.sort(key=lambda trial: (trial.outcome.operations, trial.outcome.kl))
    best: list[Trial] = []
    for trial in whole:
        if not best or trial.outcome.kl < best[-1].outcome.kl:
            best.append(trial)
    return best


def sentences(tuning: Tuning) -> list[str]:
    """What came of it, for the user."""
    wish, tuned, checked = tuning.wish, tuning.tuned, tuning.checked
    asked = f"KL of at most {wish.bound:g} nats"
    if wish.agreement is not None:
        asked += f" and agreement of at least {100 * wish.agreement:g} %"
    left = (
        f"{tuning.open} schedules that might be cheaper were left out after "
        f"{len(tuning.trials)} runs."
    )
    over = [trial for trial in tuning.checks if not trial.within]
    if tuned is None or checked is None:
        why = f"no schedule that was run is within {asked} (runs: {len(tuning.trials)})"
        if not tuning.layers:
            protected = SCORING.window + SCORING.protect_first
            why = (
                f"expected a prompt of more than {protected} tokens, and layers to choose from, "
                "for a boundary"
            )
        elif not tuning.trials:
            why = "no schedule spares enough to be run"
        elif over:
            why = (
                f"no schedule within {asked} on the prompts that were tuned on is so on the others "
                f"(checked: {len(over)}), which are too few or too unlike each other"
            )
        return [f"Dense: {why}. Nothing is dropped.", *([left] if tuning.open else [])]
    said = [
        f"Boundaries (layer: keep) {tuning.chosen}: {tuned.ratio:.2f}× fewer operations of a "
        f"prefill than dense, within {asked} on both halves of the prompts.",
    ]
    if over:
        said.append(
            "Within it on the half that was tuned on, and not on the other: "
            f"{'; '.join(str(trial.candidate) for trial in over)}."
        )
    return said + ([left] if tuning.open else [])


def to_markdown(tuning: Tuning, title: str) -> str:
    """The report as text."""
    lines = [f"# Tuned schedule: {title}", "", *sentences(tuning), ""]
    lines += ["```json", tuning.schedule.to_json().rstrip(), "```", "", "## Both halves", ""]
    lines += markdown_table(
        ["half", "prompts", "tokens", *_MEASURES],
        [
            ["tuned on", *_lengths(tuning.tuned_tokens), *_measures(tuning.tuned)],
            ["checked", *_lengths(tuning.checked_tokens), *_measures(tuning.checked)],
        ],
    )
    if not all(trial.within for trial in tuning.checks):
        lines += ["", "## What did not hold on the other half", ""]
        lines += markdown_table(_ROW, [_row(trial) for trial in tuning.checks if not trial.within])
    lines += ["", "## What was tried", "", *_tried(tuning), "", *_curve(tuning), ""]
    return "\n".join([*lines, *left_out(tuning.skipped)])


_MEASURES = ["operations, dense ÷ this", "KL, nats", "agreement", "same first token"]


def _measures(outcome: Outcome | None) -> list[str]:
    """Of the dense model what it is by definition."""
    if outcome is None:
        return ["1.00", "0", "100 %", "100 %"]
    return [
        f"{outcome.ratio:.2f}",
        f"{outcome.kl:.4f}",
        f"{100 * outcome.agreement:.1f} %",
        f"{100 * outcome.first:.0f} %",
    ]


def _lengths(tokens: list[int]) -> list[str]:
    return [str(len(tokens)), f"{min(tokens):,}–{max(tokens):,}"]


def _tried(tuning: Tuning) -> list[str]:
    """A row for each trial, by operations."""
    best = frontier(tuning)
    rows = []
    for trial in sorted(
        tuning.trials, key=lambda t: t.outcome.operations / t.outcome.dense_operations
    ):
        verdict = "within" if trial.within else "over"
        verdict += ", given up" if trial.prompts < trial.of else ""
        verdict += ", frontier" if trial in best else ""
        verdict += ", chosen" if trial.candidate == tuning.chosen else ""
        rows.append([*_row(trial), verdict])
    table = markdown_table([*_ROW, ""], rows)
    return [
        f"{len(tuning.trials)} schedules, with a window of {SCORING.window} queries, the "
        f"{SCORING.over_heads} over heads, pooled over {SCORING.pool}, and the first "
        f"{SCORING.protect_first} tokens protected. One is given up as soon as its mean over "
        "all prompts must be over the bound; its KL is then a lower bound of the mean, and the "
        "other figures are of the prompts it was run on.",
        "",
        *table,
    ]


_ROW = ["boundaries (layer: keep)", *_MEASURES, "prompts"]


def _row(trial: Trial) -> list[str]:
    """Of a trial that was given up the KL is a lower bound."""
    ratio, kl, agreement, first = _measures(trial.outcome)
    if trial.prompts < trial.of:
        kl = f"≥ {trial.least_kl:.4f}"
    return [str(trial.candidate), ratio, kl, agreement, first, f"{trial.prompts} of {trial.of}"]


def _curve(tuning: Tuning) -> list[str]:
    rows = [
        [str(r.layer), f"{r.mass:.3f}", f"{r.top:.3f}", "yes" if r.layer in tuning.layers else ""]
        for r in tuning.curve
    ]
    return [
        "## What the layers find",
        "",
        f"Of the attention that the continuation pays in later layers, and of the {TOP_TOKENS} "
        f"tokens that get most of it, the part in the best {100 * KEEP:g} % by the layer's scores.",
        "",
        *markdown_table(["layer", "attention", "top tokens", "tried"], rows),
    ]


def to_dict(tuning: Tuning) -> dict[str, Any]:
    """Everything, for JSON."""
    best = frontier(tuning)
    data = asdict(tuning)
    data["schedule"] = tuning.schedule.to_dict()
    data["chosen"] = tuning.chosen.boundaries
    for key, trials in (("trials", tuning.trials), ("checks", tuning.checks)):
        for entry, trial in zip(data[key], trials, strict=True):
            entry["candidate"] = trial.candidate.boundaries
            entry["least_kl"] = trial.least_kl
    for entry, trial in zip(data["trials"], tuning.trials, strict=True):
        entry["frontier"] = trial in best
    return data


def write_schedule(tuning: Tuning, path: str | os.PathLike[str]) -> None:
    """Write the schedule as JSON.

    Raises:
        ValueError: the file cannot be written.
    """
    with os_error_as(f"output: cannot write {str(path)!r}"):
        write_text(path, tuning.schedule.to_json())


def write_report(tuning: Tuning, title: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Write report.md, report.json, frontier.png and recall.png; returns their paths.

    Raises:
        ValueError: matplotlib is not installed, or the folder cannot be written.
    """
    place = Path(folder)
    with os_error_as(f"report: cannot write to {str(folder)!r}"):
        place.mkdir(parents=True, exist_ok=True)
    text, data = place / "report.md", place / "report.json"
    with os_error_as(f"report: cannot write {str(text)!r}"):
        write_text(text, to_markdown(tuning, title))
    with os_error_as(f"report: cannot write {str(data)!r}"):
        write_json(data, to_dict(tuning))
    return [
        text,
        data,
        plot_frontier(tuning, frontier(tuning), title, place / "frontier.png"),
        plot_recall(tuning, title, place / "recall.png"),
    ]
