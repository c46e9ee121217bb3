"""A boundary of a schedule: how it is checked, read from JSON, and placed in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WrapValidator

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.json_input import Expects, InputError, checked, read_object, shown, wrong


def _plain(value: Any) -> Any:
    """A whole number of another library, numpy for example, as Python's own."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


_LARGEST = 2**31 - 1
Depth = Annotated[float, Field(ge=0, le=1)]
Keep = Annotated[float, Field(gt=0, le=1)]
Percentile = Annotated[float, Field(ge=0, lt=100)]
Natural = Annotated[int, BeforeValidator(_plain), Field(ge=0, le=_LARGEST)]
Positive = Annotated[int, BeforeValidator(_plain), Field(ge=1, le=_LARGEST)]


def _ascending(heads: Any, check: Callable[[Any], tuple[int, ...]]) -> tuple[int, ...]:
    if not isinstance(heads, Sequence) or isinstance(heads, str) or not heads:
        raise ValueError(f"expected a list of head numbers, got {shown(heads)}")
    numbers = check(tuple(heads))
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"expected each number once, got {shown(list(heads))}")
    return tuple(sorted(numbers))


Heads = Annotated[tuple[Natural, ...], WrapValidator(_ascending)]


@checked("boundary")
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

    layer: Annotated[Natural | None, Expects("a layer number")] = None
    depth: Annotated[Depth | None, Expects("a number between 0 and 1")] = None
    keep: Annotated[Keep | None, Expects("a number above 0 and at most 1")] = None
    tokens: Annotated[Positive | None, Expects("a number of tokens")] = None
    heads: Annotated[Heads | None, Expects("head numbers")] = None

    def __post_init__(self) -> None:
        _exactly_one(self, "layer", "depth")
        _exactly_one(self, "keep", "tokens")

    @property
    def place(self) -> str:
        """The place as it was written, for messages: 'layer 11' or 'depth 0.47'."""
        return f"depth {self.depth}" if self.layer is None else f"layer {self.layer}"


@checked()
class _WrittenBoundary:
    """A boundary as JSON writes it: `Boundary`'s fields, and the paper's `percentile`."""

    layer: Any = None
    depth: Any = None
    keep: Any = None
    percentile: Annotated[Percentile | None, Expects("a number of at least 0 and below 100")] = None
    tokens: Any = None
    heads: Any = None

    def __post_init__(self) -> None:
        _exactly_one(self, "keep", "percentile", "tokens")


def _exactly_one(boundary: Any, *names: str) -> None:
    given = [name for name in names if getattr(boundary, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise ValueError(f"expected exactly one of {', '.join(names)}, got {got}")


def check_order(boundaries: Sequence[Boundary]) -> None:
    """Places ascend strictly; keeps and budgets never grow. Layers and depths meet in resolve."""
    for name, rising in (("layer", True), ("depth", True), ("keep", False), ("tokens", False)):
        written = [getattr(b, name) for b in boundaries if getattr(b, name) is not None]
        for before, after in pairwise(written):
            if rising and after <= before:
                raise ValueError(
                    f"expected each {name} above the one before it, got {after} after {before}"
                )
            if not rising and after > before:
                raise ValueError(
                    f"expected {name} never to grow from one boundary to the next, "
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
        raise wrong("boundaries", "a list", data, where)
    boundaries: list[Boundary] = []
    before: float | None = 1.0  # keep of the boundary before; None after a budget
    for index, entry in enumerate(data):
        here = f"{where}: boundaries[{index}]"
        fields = dict(vars(read_object(_WrittenBoundary, entry, here, "an object")))
        percentile = fields.pop("percentile")
        if percentile is not None:
            if before is None:
                said = "expected a boundary with keep before it, got one with tokens"
                raise InputError("percentile", said, here)
            # Rounded to what one would write: 0.49, not 0.48999999999999994.
            fields["keep"] = round(before * (1 - percentile / 100), 12)
        boundaries.append(read_object(Boundary, fields, here))
        before = boundaries[-1].keep
    return tuple(boundaries)
