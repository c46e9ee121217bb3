"""Records -> figures: a category is the mean of its tasks, `all` the mean of the categories."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from .contenders import Contender
from .results import Record

RESAMPLES = 2000
ALL = "all"

Length = int | str | None  # nominal; `all` for several together; None where items have none


@dataclass(frozen=True)
class Row:
    """One contender in one category at one length, against another contender.

    Ratios are the other's over this one's, so that above 1 is better here.
    """

    length: Length  # nominal, `all` for the items of all lengths, None where items have none
    category: str  # `all` for the mean over categories
    contender: str
    items: int
    score: float  # 0 … 1
    relative: float | None  # the score over the other's; None where that is 0
    difference: float  # of the scores, this one's minus the other's
    # Of the difference, its 95 % bounds by paired bootstrap over the items; None where a task has
    # one item, which says nothing of how they vary.
    interval: tuple[float, float] | None
    ttft_speedup: float  # median over the items
    # Of as many tokens as the other's answer has, the first included; median over the items where
    # both rates are known; None where there is no such item.
    generation_speedup: float | None
    computed_percent: float  # mean over layers of the prompt's tokens computed
    operations_ratio: float  # of the prefill
    same_first_token: float  # part of the items
    kl: float  # to the dense model, nats


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that is shown."""

    model: str
    setting: Mapping[str, Any]  # dtype, device and how prompts were made
    contenders: Sequence[Contender]
    against: str  # the contender that the others are compared with
    records: Sequence[Record]
    skipped: Sequence[str]  # sentences, one for every line or item that was left out

    @cached_property
    def rows(self) -> list[Row]:
        """See `summarize`."""
        names = [contender.name for contender in self.contenders]
        return summarize(self.records, names, self.against)

    @property
    def title(self) -> str:
        return f"{self.model}, {self.setting['dtype']}, {self.setting['device']}"

    @property
    def lengths(self) -> list[Length]:
        """Nominal lengths, ascending, then `all` if there are several."""
        return list(dict.fromkeys(row.length for row in self.rows))

    def at(self, length: Length) -> list[Row]:
        """The rows of one length."""
        return [row for row in self.rows if row.length == length]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the records, which are in a file of their own."""
        return {
            "model": self.model,
            "setting": dict(self.setting),
            "against": self.against,
            "contenders": [
                {"name": contender.name, **contender.identity} for contender in self.contenders
            ],
            "skipped": list(self.skipped),
            "rows": [asdict(row) for row in self.rows],
        }


Pair = tuple[Record, Record]  # of the same item: the contender's and the other's


def summarize(records: Sequence[Record], contenders: Sequence[str], against: str) -> list[Row]:
    """Rows by length, category (in the order of the records, then `all`) and contender.

    Where there are several lengths, rows of all of them together come last. Only items that every
    contender has finished count.
    """
    by_item: dict[str, dict[str, Record]] = {}
    for record in records:
        by_item.setdefault(record.item, {})[record.contender] = record
    paired = [found for found in by_item.values() if all(name in found for name in contenders)]
    rows: list[Row] = []
    by_length: dict[Length, list[dict[str, Record]]] = {}
    for found in sorted(paired, key=lambda found: found[against].length or 0):
        by_length.setdefault(found[against].length, []).append(found)
    if len(by_length) > 1:
        by_length[ALL] = paired
    for length, here in by_length.items():
        categories = dict.fromkeys(found[against].category for found in here)
        groups = [(name, (name,)) for name in categories] + [(ALL, tuple(categories))]
        for title, members in groups:
            for name in contenders:
                pairs = [(f[name], f[against]) for f in here if f[against].category in members]
                rows.append(_row(length, title, name, pairs))
    return rows


def heading(length: Length) -> str:
    """Of what is shown of one length."""
    if length == ALL:
        return "All lengths"
    return "Items without a nominal length" if length is None else f"{length:,} tokens"


def _row(length: Length, category: str, contender: str, pairs: Sequence[Pair]) -> Row:
    def mean(of: Callable[[Record, Record], float]) -> float:
        return balanced_mean((own.category, own.task, of(own, other)) for own, other in pairs)

    rates = [speedup for pair in pairs if (speedup := generation_speedup(*pair)) is not None]
    score = mean(lambda own, other: own.score)
    others = mean(lambda own, other: other.score)
    return Row(
        length=length,
        category=category,
        contender=contender,
        items=len(pairs),
        score=score,
        relative=score / others if others else None,
        difference=mean(lambda own, other: own.score - other.score),
        interval=bootstrap(pairs),
        ttft_speedup=median(other.ttft_seconds / own.ttft_seconds for own, other in pairs),
        generation_speedup=median(rates) if rates else None,
        computed_percent=mean(lambda own, other: own.computed_percent),
        operations_ratio=mean(lambda own, other: other.operations / own.operations),
        same_first_token=mean(lambda own, other: own.same_first_token),
        kl=mean(lambda own, other: own.kl),
    )


def balanced_mean(values: Iterable[tuple[str, str, float]]) -> float:
    """Mean over categories of tasks' means over items; of each category, task and value."""
    categories: dict[str, dict[str, list[float]]] = {}
    for category, task, value in values:
        categories.setdefault(category, {}).setdefault(task, []).append(value)
    return fmean(fmean(map(fmean, tasks.values())) for tasks in categories.values())


def generation_speedup(own: Record, other: Record) -> float | None:
    """Seconds of the other's whole answer over this one's for as many tokens, at its own rate.

    Answers differ in length, which is no speed. None where one token says nothing of the rate, or
    where nothing is generated.
    """
    if other.new_tokens < 1:
        return None
    more = other.new_tokens - 1
    if more == 0:
        return other.ttft_seconds / own.ttft_seconds
    if own.new_tokens <= 1:
        return None
    rate = own.decode_seconds / (own.new_tokens - 1)
    return (other.ttft_seconds + other.decode_seconds) / (own.ttft_seconds + more * rate)


def bootstrap(pairs: Sequence[Pair], resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % interval of the balanced mean of score differences; None where a task has one item.

    Items are drawn anew within each task, both contenders' scores of an item together. The draws
    depend on the task's name and size alone: they are the same in every run, for all contenders.
    """
    tasks: dict[tuple[str, str], list[float]] = {}
    for own, other in pairs:
        tasks.setdefault((own.category, own.task), []).append(own.score - other.score)
    if min(map(len, tasks.values())) < 2:
        return None
    categories: dict[str, list[Tensor]] = {}
    for (category, task), differences in tasks.items():
        count = len(differences)
        generator = torch.Generator().manual_seed(zlib.crc32(task.encode()))
        drawn = torch.randint(count, (resamples, count), generator=generator)
        means = torch.tensor(differences, dtype=torch.float64)[drawn].mean(dim=1)
        categories.setdefault(category, []).append(means)
    means = torch.stack([torch.stack(own).mean(dim=0) for own in categories.values()]).mean(dim=0)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
