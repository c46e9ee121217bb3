"""All items under all contenders, item by item, so that what is compared ran side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from lazyllm_ext.lab.tools.dense import DenseContinuation

from .contenders import Contender
from .measure import REFERENCE_TOKENS, Measured, make_reference, measure, profile
from .processes import ALONE, Processes
from .results import Record, Records, key_of
from .sessions import PlainSession
from .subject import Prompt, Subject
from .tasks import Item

_WARM_UP_CHARACTERS = 256
# What a record has of `Measured` as the mean over the seeds.
_MEANS = (
    *("score", "new_tokens", "ttft_seconds", "decode_seconds"),
    *("computed_percent", "operations", "same_first_token", "kl"),
)


@dataclass(frozen=True)
class PendingRun:
    """One item under one contender, not finished yet."""

    key: str
    item: Item
    contender: Contender


class Evaluation:
    """What is to be run, and what of it is finished.

    Args:
        items: in the order in which they run.
        contenders: of each item in this order, but the dense model first.
        records: finished ones are taken from it and added to it.
        model: see `results.model_digest`.
        setting: dtype, device and how prompts are made; a part of the records' keys.
        processes: among which the items are divided: every count-th is this one's.

    Raises:
        ValueError: a contender has schedules for some kinds of items, and none for one of these.
    """

    def __init__(
        self,
        subject: Subject,
        items: Sequence[Item],
        contenders: Sequence[Contender],
        records: Records,
        model: str,
        setting: Mapping[str, Any],
        processes: Processes = ALONE,
    ):
        self.subject, self.contenders, self.records = subject, contenders, records
        self.model, self.setting, self.processes = model, setting, processes
        self.skipped: list[str] = []  # a sentence for every item that cannot be run
        self.items: list[Item] = []
        for item in items:
            fault = self._fault(item)
            if fault is None:
                self.items.append(item)
            else:
                self.skipped.append(fault)
        for contender in contenders:
            contender.check(self.items)

    def pending(self) -> list[PendingRun]:
        """What this process has to finish, in the order in which it runs."""
        ordered = sorted(self.contenders, key=lambda contender: not contender.dense)
        jobs: dict[str, PendingRun] = {}  # what two contenders have in common runs once
        for item in self.items[self.processes.rank :: self.processes.count]:
            for contender in ordered:
                own = contender.of(item)
                key = self._key(item, own)
                if self.records.get(key) is None:
                    jobs.setdefault(key, PendingRun(key, item, own))
        return list(jobs.values())

    def run(self, done: Callable[[PendingRun, Record], None] = lambda job, record: None) -> None:
        """Finish all that is pending; `done` is called after each record is written.

        Raises:
            ValueError: before anything is recorded, if a contender does not fit the model.
        """
        jobs = self.pending()
        self._warm_up(jobs)
        by_item: dict[str, list[PendingRun]] = {}
        for job in jobs:
            by_item.setdefault(job.item.id, []).append(job)
        for group in by_item.values():
            item = group[0].item
            prompt = self.subject.encode(item)
            reference: DenseContinuation | None = None
            if not group[0].contender.dense:
                reference = make_reference(self.subject, PlainSession(self.subject, prompt.ids))
            for job in group:
                runs, reference = self._runs(job, prompt, reference)
                record = _record(job, prompt, runs)
                self.records.append(record)
                done(job, record)

    def finished(self) -> list[Record]:
        """The records of this run's items and contenders, under this run's names for them."""
        found = []
        for item in self.items:
            for contender in self.contenders:
                record = self.records.get(self._key(item, contender.of(item)))
                if record is not None:
                    found.append(replace(record, contender=contender.name))
        return found

    def _runs(
        self, job: PendingRun, prompt: Prompt, reference: DenseContinuation | None
    ) -> tuple[list[Measured], DenseContinuation]:
        runs: list[Measured] = []
        for seed in range(job.contender.seeds):
            with job.contender.open(self.subject, job.item, prompt, seed) as session:
                measured, reference = measure(self.subject, session, job.item, reference)
            runs.append(measured)
        assert reference is not None  # a contender has at least one seed
        return runs, reference

    def _warm_up(self, jobs: Sequence[PendingRun]) -> None:
        """Refuse what does not fit, and let the first calls of a process pay for the later ones."""
        if not jobs:
            return
        first: dict[int, tuple[Contender, Item]] = {}  # an item of each, of other processes' too
        for item in self.items:
            for contender in self.contenders:
                own = contender.of(item)
                first.setdefault(id(own), (own, item))
        for own, item in first.values():
            short = replace(item, prompt=item.prompt[:_WARM_UP_CHARACTERS])
            prompt = self.subject.encode(short)
            with own.open(self.subject, short, prompt, 0) as session:
                session.step(session.prefill().argmax().view(1))

    def _key(self, item: Item, contender: Contender) -> str:
        return key_of(self.model, self.setting, contender.identity, asdict(item))

    def _fault(self, item: Item) -> str | None:
        """A sentence about an item without tokens, or that does not fit the context."""
        try:
            tokens = self.subject.encode(item).ids.numel()
            more = max(item.max_new_tokens, REFERENCE_TOKENS)
            if item.metric == "nll":
                more = max(more, self.subject.tokens(item.answers[0]).ids.numel())
        except ValueError as error:
            return f"{item.id}: {error}"
        return self.subject.too_long(item, tokens, more)


def _record(job: PendingRun, prompt: Prompt, runs: Sequence[Measured]) -> Record:
    """The mean over the seeds; output and profile are the first seed's."""
    item, tokens = job.item, prompt.ids.numel()
    return Record(
        key=job.key,
        contender=job.contender.name,
        item=item.id,
        task=item.task,
        category=item.category,
        length=item.target_tokens,
        prompt_tokens=tokens,
        scores=[run.score for run in runs],
        also={name: fmean(run.also[name] for run in runs) for name in runs[0].also},
        output=runs[0].output,
        profile=profile(runs[0].kept, tokens),
        **{name: fmean(getattr(run, name) for run in runs) for name in _MEANS},
    )
