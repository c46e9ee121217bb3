"""Pruning schedules: which layers drop tokens, and how many stay.

A schedule is data. It is written as JSON, as a dict, or with the dataclasses below, is checked
completely when it is made, and meets a model only in `PruningSchedule.resolve`, which turns depths
into layers. Every fault is a ValueError of one sentence that says what was got and what was
expected. docs/schedules.md explains the fields with examples.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, PlainValidator

from lazyllm_ext.json_input import (
    Expects,
    InputError,
    checked,
    decode,
    given_fields,
    read_json,
    read_object,
    shown,
)

from .boundary import Boundary, Natural, Positive, check_order, layer_of, parse_boundaries

__all__ = ["Boundary", "PruningSchedule", "ResolvedSchedule", "shipped_schedules"]

_RULES = (
    "window", "pool", "protect_first", "over_heads", "accumulate", "max_revive", "min_tokens",
)  # fmt: skip
# What may follow a key in the name of a variant of its model.
_VARIANT = re.compile(r"|([-_]|\.(?!\d))[^/]*")


@dataclass(frozen=True)
class ResolvedSchedule:
    """A schedule on one model: what the decoder runs by.

    The first four run over the S boundaries, the others are `PruningSchedule`'s.
    """

    layers: tuple[int, ...] = ()  # strictly ascending, of full attention, none of them the last
    keeps: tuple[float, ...] = ()  # part of the context that stays; 1.0 where a budget rules
    budgets: tuple[int, ...] = ()  # tokens that stay; -1 where a keep rules
    heads: tuple[tuple[int, ...], ...] = ()  # query heads that score; empty for all of them
    window: int = 1
    pool: int = 1
    protect_first: int = 0
    over_heads: str = "mean"
    accumulate: bool = False
    max_revive: int = -1  # for no bound
    min_tokens: int = 0


def _boundaries(boundaries: Any) -> tuple[Boundary, ...]:
    if not isinstance(boundaries, Iterable) or isinstance(boundaries, (str, Mapping)):
        raise ValueError(f"expected a list, got {shown(boundaries)}")
    listed = tuple(boundaries)
    for boundary in listed:
        if not isinstance(boundary, Boundary):
            raise ValueError(f"expected Boundary, got {shown(boundary)}")
    return listed


def _odd(width: int) -> int:
    if width % 2 == 0:
        raise ValueError(f"expected an odd number, got {width}")
    return width


def _models(models: Any) -> Mapping[str, PruningSchedule]:
    if not isinstance(models, Mapping):
        raise ValueError(f"expected an object of schedules, got {shown(models)}")
    for key, entry in models.items():
        if not isinstance(key, str) or not key or not isinstance(entry, PruningSchedule):
            raise ValueError(f"expected schedules by model id, got {shown(key)}: {shown(entry)}")
        if entry.models:
            said = "expected a schedule without models, got one with them"
            raise InputError(f"models[{key!r}]", said)
    return models


def _place(fields: Mapping[str, Any]) -> str:
    """What messages begin with."""
    name = fields.get("name")
    return f"schedule {name!r}" if name and isinstance(name, str) else "schedule"


@checked(_place)
class PruningSchedule:
    """Where tokens are dropped, how many stay, and by which scores.

    The omitted fields are the LazyLLM paper's (arXiv 2407.14057): the last query alone scores, no
    pooling, nothing protected, unbounded revival. No boundary at all is the dense model.

    Args:
        name: for reports.
        boundaries: in ascending order; keeps and token numbers may not grow.
        window: last queries of a step whose attention is averaged, at least 1.
        pool: odd width over which importance is max-pooled, at least 1.
        protect_first: first tokens of a sequence that are never dropped.
        over_heads: "mean", or "max" for the head that attends most to a token, of the sums over the
            window's queries.
        accumulate: whether a boundary's scores include those of the boundaries before it, of the
            same step.
        max_revive: most dropped tokens that a step computes after all, per sequence and boundary;
            None for no bound, 0 for none.
        min_tokens: contexts shorter than this are not pruned; "auto" lets `lazyllm_ext.apply` find
            by measurement from where on pruning pays.
        models: schedules for known models, by model id; they replace this one entirely.

    Raises:
        ValueError: a field of the wrong type or out of range, boundaries out of order or growing.
    """

    # By keyword only: so it comes first where fields are listed, and `boundaries` in a call.
    name: Annotated[str | None, Expects("a string")] = field(default=None, kw_only=True)
    boundaries: Annotated[tuple[Boundary, ...], PlainValidator(_boundaries)] = ()
    window: Annotated[Positive, Expects("a number of queries")] = 1
    pool: Annotated[Positive, AfterValidator(_odd), Expects("an odd number")] = 1
    protect_first: Annotated[Natural, Expects("a number of tokens")] = 0
    over_heads: Annotated[Literal["mean", "max"], Expects('"mean" or "max"')] = "mean"
    accumulate: Annotated[bool, Expects("true or false")] = False
    max_revive: Annotated[Natural | None, Expects("null or a number of tokens")] = None
    min_tokens: Annotated[Natural | Literal["auto"], Expects('a number of tokens or "auto"')] = 0
    models: Annotated[Mapping[str, PruningSchedule], PlainValidator(_models)] = field(
        default_factory=dict, hash=False
    )

    def __post_init__(self) -> None:
        check_order(self.boundaries)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningSchedule:
        """Read a schedule as JSON writes it. Raises ValueError for anything but a right one."""
        return _parse(data, "schedule")

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> PruningSchedule:
        """Read a JSON file, or JSON text (a string that begins with a brace).

        Raises:
            ValueError: the file cannot be read, is not JSON, or holds no right schedule.
        """
        if _is_text(source):
            return cls.from_dict(decode(source, "schedule"))
        path = os.fspath(source)
        try:
            data = read_json(path, f"schedule {path!r}")
        except OSError as error:
            raise ValueError(f"schedule: cannot read {path!r}: {error.strerror}") from error
        return _parse(data, f"schedule {path!r}")

    @classmethod
    def load(
        cls, source: PruningSchedule | Mapping[str, Any] | str | os.PathLike[str]
    ) -> PruningSchedule:
        """A schedule from whatever names one: itself, a dict, a shipped name, or a JSON file.

        A shipped name wins over a file of the same name (write `./fast` for the file).

        Raises:
            ValueError: nothing of that name, or not a right schedule.
        """
        if isinstance(source, PruningSchedule):
            return source
        if isinstance(source, Mapping):
            return cls.from_dict(source)
        if not isinstance(source, (str, os.PathLike)):
            raise ValueError(
                "schedule: expected a PruningSchedule, a dict, a shipped name or the path of a "
                f"JSON file, got {shown(source)}"
            )
        names = shipped_schedules()
        if source in names:
            folder = resources.files("lazyllm_ext.schedule") / "shipped"
            text = (folder / f"{source}.json").read_text(encoding="utf-8")
            return cls.from_dict(decode(text, f"schedule {source!r}"))
        if not _is_text(source) and not os.path.exists(source):
            raise ValueError(
                f"schedule: got {os.fspath(source)!r}, expected one of {', '.join(names)}, or the "
                "path of a JSON file"
            )
        return cls.from_json(source)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON writes it; `from_dict` gives an equal one back."""
        data: dict[str, Any] = {} if self.name is None else {"name": self.name}
        data["boundaries"] = [
            {
                name: list(value) if name == "heads" else value
                for name, value in vars(boundary).items()
                if value is not None
            }
            for boundary in self.boundaries
        ]
        data.update({name: getattr(self, name) for name in _RULES})
        if self.models:
            data["models"] = {key: entry.to_dict() for key, entry in self.models.items()}
        return data

    def to_json(self) -> str:
        """The schedule as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def for_model(self, model_id: str | None) -> PruningSchedule:
        """The entry for a known model, else this schedule itself.

        Args:
            model_id: a hub id or a folder. An entry's key matches it, or the last part of its path,
                whatever the case; and a name that goes on after the key with `-`, `_` or `.`, as
                those of variants and fine-tuned models do, but not with a version's next number
                (`Qwen2` is not `Qwen2.5`). The longest key wins.
        """
        if model_id:
            whole = model_id.replace("\\", "/").rstrip("/").lower()
            for key, entry in sorted(self.models.items(), key=lambda item: -len(item[0])):
                for name in (whole, whole.rsplit("/", 1)[-1]):
                    if name.startswith(key.lower()) and _VARIANT.fullmatch(name[len(key) :]):
                        return entry
        return self

    def resolve(
        self, full_attention: Sequence[bool], model_id: str | None = None
    ) -> ResolvedSchedule:
        """The schedule on a model.

        Two depths that fall on one layer, as they do in a shallow model or in one with few
        full-attention layers, are one boundary: the later one's, which keeps no more.

        Args:
            full_attention: for every layer of the model, whether it attends to all tokens.
            model_id: see `for_model`.

        Raises:
            ValueError: a boundary past the end, on the last layer or on a sliding-window layer,
                layers out of order, or min_tokens that are still "auto".
        """
        schedule = self.for_model(model_id)
        where = _place(vars(schedule))
        if schedule.min_tokens == "auto":
            raise ValueError(
                f'{where}: min_tokens: expected a number of tokens, got "auto", which only '
                "lazyllm_ext.apply finds out; its report().min_tokens says the number"
            )
        placed: list[tuple[int, Boundary]] = []
        for boundary in schedule.boundaries:
            layer = layer_of(boundary, full_attention, where)
            if placed and layer <= placed[-1][0]:
                before = placed[-1][1]
                if layer < placed[-1][0] or boundary.depth is None or before.depth is None:
                    raise ValueError(
                        f"{where}: expected each boundary after the one before it, got "
                        f"{boundary.place} (layer {layer}) after {before.place} "
                        f"(layer {placed[-1][0]})"
                    )
                placed.pop()
            placed.append((layer, boundary))
        return ResolvedSchedule(
            layers=tuple(layer for layer, _ in placed),
            keeps=tuple(1.0 if b.keep is None else b.keep for _, b in placed),
            budgets=tuple(-1 if b.tokens is None else b.tokens for _, b in placed),
            heads=tuple(b.heads or () for _, b in placed),
            window=schedule.window,
            pool=schedule.pool,
            protect_first=schedule.protect_first,
            over_heads=schedule.over_heads,
            accumulate=schedule.accumulate,
            max_revive=-1 if schedule.max_revive is None else schedule.max_revive,
            min_tokens=schedule.min_tokens,
        )


def shipped_schedules() -> tuple[str, ...]:
    """Names of the schedules that the package brings."""
    folder = resources.files("lazyllm_ext.schedule") / "shipped"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json")))


def _is_text(source: str | os.PathLike[str]) -> TypeGuard[str]:
    """Whether this is JSON itself, and no name of something that holds it."""
    return isinstance(source, str) and source.lstrip()[:1] in ("{", "[")


def _parse(data: Any, where: str) -> PruningSchedule:
    given = given_fields(PruningSchedule, data, where)
    given["boundaries"] = parse_boundaries(given.get("boundaries", ()), where)
    if isinstance(models := given.get("models"), Mapping):
        given["models"] = {
            key: _parse(entry, f"{where}: models[{key!r}]") for key, entry in models.items()
        }
    return read_object(PruningSchedule, given, where)
