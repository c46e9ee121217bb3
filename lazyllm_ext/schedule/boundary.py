"""A boundary of a schedule: how it is checked, read from JSON, and placed in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lazyllm_ext.errors import NotSupportedError

from .fields import integer, known, number, one_of, shown

_BOUNDARY_FIELDS = ("layer", "depth", "keep", "percentile", "tokens", "heads")


@dataclass(frozen=True)
class Boundary:
    """A layer in which tokens are dropped: where it is, and how many tokens stay after it.

    Exactly one of `layer` and `depth`, and exactly one of `keep` and `tokens`, is given.

    Args:
        layer: number of a full-attention layer, counted from 0; not the last one.
        depth: 0–1; the full-attention layer nearest to round(depth · layers), the later on a tie.
        keep: 0 < keep ≤ 1, the part of the whole context that stays.
        tokens: how many tokens stay, at least 1.
        heads: numbers of the query heads whose attention scores here; None is all of them.

    Raises:
        ValueError: a field is missing, given twice over, of the wrong type or out of range.
    """

    layer: int | None = None
    depth: float | None = None
    keep: float | None = None
    tokens: int | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if one_of(vars(self), ("layer", "depth"), "boundary") == "layer":
            self._set("layer", integer(self.layer, "boundary: layer", 0, "a layer number"))
        else:
            depth = number(self.depth, "boundary: depth", "a number between 0 and 1")
            if not 0 <= depth <= 1:
                raise ValueError(f"boundary: depth: expected a number between 0 and 1, got {depth}")
            self._set("depth", depth)
        if one_of(vars(self), ("keep", "tokens"), "boundary") == "tokens":
            self._set("tokens", integer(self.tokens, "boundary: tokens", 1, "a number of tokens"))
        else:
            expected = "a number above 0 and at most 1"
            keep = number(self.keep, "boundary: keep", expected)
            if not 0 < keep <= 1:
                raise ValueError(f"boundary: keep: expected {expected}, got {shown(self.keep)}")
            self._set("keep", keep)
        if self.heads is not None:
            self._set("heads", _heads(self.heads))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the one way to normalize a frozen dataclass

    @property
    def place(self) -> str:
        """The place as it was written, for messages: 'layer 11' or 'depth 0.47'."""
        return f"depth {self.depth}" if self.layer is None else f"layer {self.layer}"


def _heads(heads: Any) -> tuple[int, ...]:
    """Numbers of heads, ascending; ValueError for anything but at least one, each once."""
    if not isinstance(heads, Sequence) or isinstance(heads, str) or not heads:
        raise ValueError(f"boundary: heads: expected a list of head numbers, got {shown(heads)}")
    numbers = [integer(head, "boundary: heads", 0, "head numbers") for head in heads]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"boundary: heads: expected each number once, got {shown(list(heads))}")
    return tuple(sorted(numbers))


def check_order(boundaries: Sequence[Boundary], where: str) -> None:
    """Places ascend strictly; keeps and budgets never grow. Layers and depths meet in resolve."""
    for name, rising in (("layer", True), ("depth", True), ("keep", False), ("tokens", False)):
        written = [getattr(b, name) for b in boundaries if getattr(b, name) is not None]
        for before, after in pairwise(written):
            if rising and after <= before:
                raise ValueError(
                    f"{where}: expected each {name} above the one before it, "
                    f"got {after} after {before}"
                )
            if not rising and after > before:
                raise ValueError(
                    f"{where}: expected {name} never to grow from one boundary to the next, "
                    f"got {after} after {before}"
                )


def layer_of(boundary: Boundary, full_attention: Sequence[bool], where: str) -> int:
    """The layer of a boundary: see `Boundary`."""
    layers = len(full_attention)
    allowed = [layer for layer in range(layers - 1) if full_attention[layer]]
    if boundary.depth is not None:
        if not allowed:
            raise NotSupportedError(
                f"{where}: {boundary.place}: expected a model with a full-attention layer before "
                f"the last layer, got {layers} layers without one"
            )
        asked = round(boundary.depth * layers)
        return min(allowed, key=lambda layer: (abs(layer - asked), -layer))
    layer = boundary.layer
    assert layer is not None  # Boundary has exactly one of the two
    if layer in allowed:
        return layer
    if layer >= layers:
        fault = f"which is past the end of a model of {layers} layers (0 to {layers - 1})"
    elif layer == layers - 1:
        fault = f"which is the last of {layers} layers, with nothing after it to save"
    else:
        full = ", ".join(map(str, allowed)) or "none"
        fault = f"which attends within a sliding window (full-attention layers: {full})"
    raise ValueError(f"{where}: expected a full-attention layer, got {boundary.place}, {fault}")


def parse_boundaries(data: Any, where: str) -> tuple[Boundary, ...]:
    """Boundaries as JSON writes them; the paper's `percentile` becomes `keep`.

    keep_s = keep_{s-1} · (1 - percentile / 100).
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ValueError(f"{where}: boundaries: expected a list, got {shown(data)}")
    boundaries: list[Boundary] = []
    before: float | None = 1.0  # keep of the boundary before; None after a budget
    for index, entry in enumerate(data):
        here = f"{where}: boundaries[{index}]"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{here}: expected an object, got {shown(entry)}")
        known(entry, _BOUNDARY_FIELDS, here)
        one_of(entry, ("keep", "percentile", "tokens"), here)
        fields = dict(entry)
        percentile = fields.pop("percentile", None)
        if percentile is not None:
            if before is None:
                raise ValueError(
                    f"{here}: percentile: expected a boundary with keep before it, got one with "
                    "tokens"
                )
            expected = "a number of at least 0 and below 100"
            if not 0 <= number(percentile, f"{here}: percentile", expected) < 100:
                raise ValueError(
                    f"{here}: percentile: expected {expected}, got {shown(percentile)}"
                )
            # Rounded to what one would write: 0.49, not 0.48999999999999994.
            fields["keep"] = round(before * (1 - percentile / 100), 12)
        try:
            boundaries.append(Boundary(**fields))
        except ValueError as error:
            raise ValueError(str(error).replace("boundary", here, 1)) from error
        before = boundaries[-1].keep
    return tuple(boundaries)
