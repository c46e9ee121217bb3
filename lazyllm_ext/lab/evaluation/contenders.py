"""What is compared: the dense model, schedules, and the baselines of the LazyLLM paper's table."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lazyllm_ext
from lazyllm_ext.schedule import PruningSchedule, shipped_schedules

from .compress import compress
from .drop import RandomScores
from .sessions import LazySession, PlainSession, ReducedSession, Session
from .static import static_prune
from .subject import Prompt, Subject
from .tasks import Item

RANDOM_SEEDS = 5

Open = Callable[[Subject, Item, Prompt, int], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Contender:
    """One way to read a prompt."""

    name: str  # for tables, and unique in a run
    identity: dict[str, Any]  # whatever decides what it computes, for JSON
    open: Open  # (subject, item, prompt, seed) -> the session in which the prompt is computed
    seeds: int = 1  # how many runs with other seeds are averaged
    dense: bool = False  # whether it is plain transformers
    # What it is for a task or category, by name; empty where it is the same for all.
    kinds: Mapping[str, Contender] = field(default_factory=dict)
    folder: Path | None = None  # that the kinds were read from

    def kind(self, task: str, category: str) -> str | None:
        """Of its kinds the one that stands for such items, if there is one."""
        return next((name for name in (task, category) if name in self.kinds), None)

    def title(self, task: str, category: str) -> str:
        """Its name, and the kind that stands for such items."""
        return ": ".join(filter(None, (self.name, self.kind(task, category))))

    def of(self, item: Item) -> Contender:
        """What reads this item: its kind's, or this itself where there are no kinds."""
        kind = self.kind(item.task, item.category)
        return self if kind is None else self.kinds[kind]

    def check(self, items: Iterable[Item]) -> None:
        """Raises ValueError where it has kinds, and none for some of the items."""
        found = dict.fromkeys((item.task, item.category) for item in items) if self.kinds else {}
        missing = dict.fromkeys(task for task, kind in found if self.kind(task, kind) is None)
        if missing:
            raise ValueError(
                f"contenders: {self.name}: expected a schedule for every task, or for its "
                f"category, got none for {', '.join(missing)} (there are: {', '.join(self.kinds)})"
            )


def parse_contenders(specs: Iterable[str]) -> list[Contender]:
    """Contenders from their names, in this order.

    A name is `dense`, a schedule (a shipped name, the path of a JSON file, or a folder with one for
    each task or category, `code.json` for `code`), `norevive:SCHEDULE`, `random:SCHEDULE`,
    `static:KEEP` or `compress:KEEP`, where 0 < KEEP <= 1.

    Raises:
        ValueError: none of these, a schedule that is not right, or the same name twice.
    """
    contenders: list[Contender] = []
    for spec in specs:
        contender = parse_contender(spec.strip())
        if any(other.name == contender.name for other in contenders):
            raise ValueError(f"contenders: expected each name once, got {contender.name!r} twice")
        contenders.append(contender)
    if not contenders:
        raise ValueError("contenders: expected at least one, got none")
    return contenders


def parse_contender(spec: str) -> Contender:
    """One contender; see `parse_contenders`."""
    if spec == "dense":
        return Contender("dense", {"kind": "dense"}, _open_dense, dense=True)
    kind, colon, rest = spec.partition(":")
    if colon and kind in _WITH_SCHEDULE:
        return _scheduled(rest, spec, f"{kind}:{_short(rest)}", _WITH_SCHEDULE[kind])
    if colon and kind in _WITH_KEEP:
        return _with_keep(kind, _keep(rest, spec))
    return _scheduled(spec, spec, _short(spec), _lazy)


def _scheduled(
    source: str, spec: str, name: str, make: Callable[[str, PruningSchedule], Contender]
) -> Contender:
    """Of one schedule, or of a folder with one for each kind of items."""
    if name == "dense":
        raise ValueError(
            f"contenders: expected a schedule of another name than dense, which stands for plain "
            f"transformers, got {spec!r}"
        )
    if source in shipped_schedules() or not os.path.isdir(source):
        return make(name, _schedule(source, spec))
    files = [file for file in sorted(Path(source).glob("[!.]*.json")) if file.is_file()]
    if not files:
        raise ValueError(
            f"contenders: {spec}: expected a folder with a schedule for each task or category "
            "(code.json for code), got one without JSON files"
        )
    kinds = {file.stem: make(name, PruningSchedule.load(file)) for file in files}
    return replace(_by_kind(name, kinds), folder=Path(source))


def _by_kind(name: str, kinds: Mapping[str, Contender]) -> Contender:
    """A schedule for each kind of items; all of them are made alike."""

    def open(
        subject: Subject, item: Item, prompt: Prompt, seed: int
    ) -> AbstractContextManager[Session]:
        return whole.of(item).open(subject, item, prompt, seed)

    identities = {kind: contender.identity for kind, contender in kinds.items()}
    seeds = max(contender.seeds for contender in kinds.values())
    identity = {"kind": "by task or category", "kinds": identities}
    whole = Contender(name, identity, open, seeds, kinds=kinds)
    return whole


def _lazy(name: str, schedule: PruningSchedule) -> Contender:
    return Contender(name, _identity("schedule", schedule), _opener(schedule))


def _no_revival(name: str, schedule: PruningSchedule) -> Contender:
    """The same schedule, and no dropped token is ever computed after all."""
    schedule = _change(schedule, max_revive=0)
    return Contender(name, _identity("schedule", schedule), _opener(schedule))


def _random(name: str, schedule: PruningSchedule) -> Contender:
    """The same boundaries and counts; which tokens stay is drawn, independently of each other."""
    schedule = _change(schedule, pool=1)
    identity = _identity("random", schedule)
    return Contender(name, identity, _opener(schedule, drawn=True), seeds=RANDOM_SEEDS)


_WITH_SCHEDULE = {"norevive": _no_revival, "random": _random}
_WITH_KEEP = {"static": static_prune, "compress": compress}


def _with_keep(kind: str, keep: float) -> Contender:
    reduce = _WITH_KEEP[kind]

    @contextmanager
    def open(subject: Subject, item: Item, prompt: Prompt, seed: int) -> Iterator[Session]:
        yield ReducedSession(subject, prompt.ids, partial(reduce, subject, item, prompt, keep))

    return Contender(f"{kind}:{keep:g}", {"kind": kind, "keep": keep}, open)


@contextmanager
def _open_dense(subject: Subject, item: Item, prompt: Prompt, seed: int) -> Iterator[Session]:
    yield PlainSession(subject, prompt.ids)


def _opener(schedule: PruningSchedule, drawn: bool = False) -> Open:
    """What applies a schedule for one prompt; `drawn`: with scores by lot."""

    @contextmanager
    def open(subject: Subject, item: Item, prompt: Prompt, seed: int) -> Iterator[Session]:
        with lazyllm_ext.apply(subject.model, schedule) as lazy:
            scores = None
            if drawn:
                lot = zlib.crc32(f"{item.id} {seed}".encode())
                scores = RandomScores(prompt.ids.numel(), lot, lazy.decoder.window)
            yield LazySession(lazy, prompt.ids, scores)

    return open


def _identity(kind: str, schedule: PruningSchedule) -> dict[str, Any]:
    """The schedule's content; its name decides nothing."""
    return {"kind": kind, "schedule": replace(schedule, name=None).to_dict()}


def _change(schedule: PruningSchedule, **fields: Any) -> PruningSchedule:
    """The schedule with other fields, in its entries for known models too."""
    models = {key: replace(entry, **fields) for key, entry in schedule.models.items()}
    return replace(schedule, models=models, **fields)


def _schedule(source: str, spec: str) -> PruningSchedule:
    if source not in shipped_schedules() and not os.path.isfile(source):
        raise ValueError(
            "contenders: expected dense, a schedule (one of "
            f"{', '.join(name for name in shipped_schedules() if name != 'dense')}, the path of "
            "a JSON file or a folder of them), norevive:SCHEDULE, random:SCHEDULE, static:KEEP or "
            "compress:KEEP, "
            f"got {spec!r}"
        )
    return PruningSchedule.load(source)


def _short(source: str) -> str:
    """A file's name without its folder and ending, a folder's name; a shipped name as it is."""
    if source in shipped_schedules():
        return source
    return Path(source).resolve().name if os.path.isdir(source) else Path(source).stem


def _keep(text: str, spec: str) -> float:
    try:
        keep = float(text)
    except ValueError:
        keep = 0.0
    if not 0 < keep <= 1:
        raise ValueError(
            f"contenders: {spec.partition(':')[0]}: expected the part of the prompt that stays, "
            f"above 0 and at most 1, got {text!r}"
        )
    return keep
