"""TTFT, decoding, bytes and the parts of TTFT over the prompt's length, as small SVG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazyllm_ext.lab.tools.figures import finish, panels, require_matplotlib

from .parts import PARTS, shares

_WIDTH, _HEIGHT = 4.2, 3.2  # inches, of one panel
_BAR_WIDTH = 2.2


def draw(stem: Path, result: dict[str, Any]) -> list[Path]:
    """Draw a result of several lengths; the files, which stand beside `stem`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context

    stem.parent.mkdir(parents=True, exist_ok=True)
    drawn = {"time": _time, "bytes": _bytes, "parts": _parts}
    files = []
    with rc_context({"svg.hashsalt": "lazyllm_ext", "font.size": 8}):  # the same bytes each time
        for name, draw_one in drawn.items():
            figure = draw_one(result["lengths"])
            files.append(stem.with_name(f"{stem.name}-{name}.svg"))
            figure.savefig(files[-1], metadata={"Date": None}, bbox_inches="tight")
    return files


def _time(lengths: list[dict[str, Any]]) -> Any:
    figure, (ttft, decode) = panels(2, _WIDTH, _HEIGHT)
    _lines(ttft, lengths, lambda row: row["ttft_s"], 1, "time to first token, s")
    _lines(decode, lengths, lambda row: row["decode_s_per_token"], 1e3, "decoding, ms per token")
    ttft.set_yscale("log")
    decode.set_ylim(bottom=0)
    ttft.legend()
    return figure


def _bytes(lengths: list[dict[str, Any]]) -> Any:
    figure, (held, peak) = panels(2, _WIDTH, _HEIGHT)
    _lines(held, lengths, lambda row: _point(row["kv_bytes"] + row["aux_bytes"]), 1e-6,
           "keys, values and waiting tokens, MB")  # fmt: skip
    _lines(peak, lengths, lambda row: _point(row.get("peak_bytes")), 1e-6, "peak of a prefill, MB")
    held.legend()
    return figure


def _lines(
    axes: Any,
    lengths: list[dict[str, Any]],
    value: Callable[[dict[str, Any]], dict[str, float] | None],
    factor: float,
    label: str,
) -> None:
    """A line per contender, with bars from the least to the most."""
    for name in lengths[0]["rows"]:
        points = [(entry["tokens"], value(entry["rows"][name])) for entry in lengths]
        found = [(tokens, point) for tokens, point in points if point is not None]
        if not found:
            continue
        middle = [point["median"] * factor for _, point in found]
        below = [(point["median"] - point["min"]) * factor for _, point in found]
        above = [(point["max"] - point["median"]) * factor for _, point in found]
        tokens = [tokens for tokens, _ in found]
        axes.errorbar(tokens, middle, (below, above), label=name, marker="o", ms=3, capsize=2)
    ticks = [entry["tokens"] for entry in lengths]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    finish(axes, "tokens of the prompt", label, legend=None)


def _point(value: float | None) -> dict[str, float] | None:
    return None if value is None else {"median": value, "min": value, "max": value}


def _parts(lengths: list[dict[str, Any]]) -> Any:
    """Stacked shares, a panel per contender."""
    names = [name for name, row in lengths[0]["rows"].items() if "parts_s" in row]
    figure, bars = panels(len(names), _BAR_WIDTH, _HEIGHT)
    places = range(len(lengths))
    for axes, name in zip(bars, names, strict=True):
        split = [shares(entry["rows"][name]) for entry in lengths]
        bottom = [0.0] * len(lengths)
        for part in PARTS:
            heights = [share[part] * 100 for share in split]
            axes.bar(places, heights, bottom=bottom, label=part.replace("_mlp", " + MLP"))
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set_xticks(places, [str(entry["tokens"]) for entry in lengths], rotation=90)
        axes.set_title(name)
    bars[0].set_ylabel("% of TTFT")
    bars[-1].legend(loc="lower right")
    return figure
