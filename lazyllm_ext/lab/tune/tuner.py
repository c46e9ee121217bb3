"""From a model and prompts to a schedule: references, curves, search, check."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from lazyllm_ext.lab.evaluation.subject import Subject
from lazyllm_ext.lab.evaluation.tasks import Item
from lazyllm_ext.schedule import PruningSchedule

from . import trial
from .candidates import Candidate, grid, harder, operations
from .curves import Recall, choose_layers, mean_curve
from .journal import Journal
from .prompts import halves
from .reference import DenseModel, Reference
from .search import cheapest
from .trial import Outcome, mean

# The layers are chosen from the curves of so many prompts: of these what enters every layer is
# held, of the others only what enters the chosen ones.
_PILOT = 4
# A schedule that spares less than this over another one is not worth a run.
_WORTH = 0.02
_MIN_TOKENS = 512

# (what, done, total): total is an upper bound.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wish:
    """What is asked of a schedule, and how hard it is looked for.

    Raises:
        ValueError: a value out of its range.
    """

    bound: float = 0.05  # largest KL(dense ‖ schedule) in nats, mean over prompts and tokens
    # Smallest part of tokens that are the dense model's, mean over prompts; None for any.
    agreement: float | None = None
    new_tokens: int = 16  # most tokens of each dense continuation that both are measured on
    most_boundaries: int = 2  # of a schedule
    most_runs: int = 40  # of schedules, each on all prompts of the tuned half at most

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound >= 0):
            raise ValueError(f"bound: expected a KL of at least 0 nats, got {self.bound}")
        if self.agreement is not None and not 0 <= self.agreement <= 1:
            raise ValueError(f"agreement: expected a part from 0 to 1, got {self.agreement}")
        for name, most in (("new_tokens", None), ("most_boundaries", 3), ("most_runs", None)):
            value = getattr(self, name)
            if value < 1 or (most is not None and value > most):
                expected = "at least 1" if most is None else f"1 to {most}"
                raise ValueError(f"{name}: expected {expected}, got {value}")


@dataclass(frozen=True)
class Trial:
    """A schedule that was run."""

    candidate: Candidate
    outcome: Outcome  # mean over the prompts that it was run on
    prompts: int  # how many these are; a schedule is given up once it must end over the bound
    of: int  # how many there are
    within: bool

    @property
    def least_kl(self) -> float:
        """The mean over all prompts; at least that if it was not run on all."""
        return self.outcome.kl * self.prompts / self.of


@dataclass(frozen=True)
class Tuning:
    """What came of it."""

    wish: Wish  # what was asked
    schedule: PruningSchedule  # the result, named
    chosen: Candidate  # its boundaries; none for the dense model
    # The result on both halves; None for the dense model, which is its own reference.
    tuned: Outcome | None
    checked: Outcome | None
    trials: list[Trial]  # on the tuned half, in the order of the runs
    checks: list[Trial]  # on the other half, of those within the bounds on the tuned one
    open: int  # schedules that might be better, for which no runs were left
    curve: list[Recall]  # recall by layer, mean over the tuned half
    layers: list[int]  # where boundaries were tried
    tuned_tokens: list[int]  # lengths of the prompts of each half
    checked_tokens: list[int]
    dense_operations: float  # of a dense prefill, mean over the tuned half
    skipped: list[str]  # a sentence for each prompt that does not fit the model's context


def within(wish: Wish, outcomes: Sequence[Outcome], of: int) -> bool:
    """Whether the mean over `of` prompts can still be, or is, within the bounds.

    KL is at least 0 and agreement at most 1, so that what is too much for all prompts stays so.
    """
    if sum(o.kl for o in outcomes) > wish.bound * of:
        return False
    if wish.agreement is None:
        return True
    return sum(1 - o.agreement for o in outcomes) <= (1 - wish.agreement) * of + 1e-9


def tune(
    subject: Subject,
    items: Sequence[Item],
    wish: Wish,
    name: str,
    progress: Progress = lambda what, done, total: None,
    journal: Journal | None = None,
) -> Tuning:
    """Find the cheapest schedule within the bounds.

    Args:
        subject: the model.
        items: prompts; every second one is tuned on. What is within the bounds there is checked
            on the others, and counts as over them if it is so there.
        name: of the schedule.
        progress: called as work is done.
        journal: of this search; what it holds is not run again. None for none.

    Raises:
        ValueError: a model without a place for a boundary, or fewer than two prompts that fit.
    """
    dense = DenseModel(subject.model)
    fitting, skipped = fitting_prompts(subject, items, wish.new_tokens)
    tuned_ids, checked_ids = halves(fitting)
    bar = _Bar(progress, len(tuned_ids) * (1 + wish.most_runs) + 2 * len(checked_ids))
    references, layers = _references(subject, dense, tuned_ids, wish, bar)
    min_tokens = min(_MIN_TOKENS, *(ids.numel() for ids in fitting))
    make_half = partial(_Half, dense, wish, min_tokens, bar, journal)
    half = make_half(tuned_ids, lambda: references)
    other = make_half(
        checked_ids, lambda: _references(subject, dense, checked_ids, wish, bar, layers)[0]
    )
    lengths = [ids.numel() for ids in tuned_ids]
    best, left_open = _search(grid(layers, wish.most_boundaries), half, other, lengths)
    bar.end()
    return Tuning(
        wish,
        best.schedule(name, min_tokens) if best else PruningSchedule(name=name),
        best or Candidate(()),
        half.outcome(best),
        other.outcome(best),
        half.trials,
        other.trials,
        left_open,
        mean_curve([reference.curve for reference in references]),
        layers,
        lengths,
        [ids.numel() for ids in checked_ids],
        sum(operations(dense.decoder, Candidate(()), n) for n in lengths) / len(lengths),
        skipped,
    )


class _Bar:
    """Counts runs of one prompt; what is given up early counts as done."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def step(self, what: str, count: int = 1) -> None:
        self.done += count
        self.total = max(self.total, self.done)  # checks after the first one are not foreseen
        self.progress(what, self.done, self.total)

    def end(self) -> None:
        """The search may end before its runs are used up."""
        self.step("", self.total - self.done)


def fitting_prompts(
    subject: Subject, items: Sequence[Item], new_tokens: int
) -> tuple[list[Tensor], list[str]]:
    """Tokens of the prompts that fit the model's context, and sentences about all others."""
    fitting: list[Tensor] = []
    skipped: list[str] = []
    for item in items:
        try:
            ids = subject.encode(item).ids
        except ValueError as error:
            skipped.append(f"{item.id}: {error}")
            continue
        refusal = subject.too_long(item, ids.numel(), new_tokens)
        if refusal is None:
            fitting.append(ids)
        else:
            skipped.append(refusal)
    return fitting, skipped


def _references(
    subject: Subject,
    dense: DenseModel,
    prompts: Sequence[Tensor],
    wish: Wish,
    bar: _Bar,
    layers: list[int] | None = None,
) -> tuple[list[Reference], list[int]]:
    """The dense model on one half of the prompts, and the layers in which boundaries are tried.

    Args:
        layers: chosen on the other half; None: the first prompts choose them.
    """
    references: list[Reference] = []
    half = "" if layers is None else " of the other half"
    for number, ids in enumerate(prompts, start=1):
        keep = dense.layers if layers is None else layers
        references.append(dense.reference(ids, wish.new_tokens, subject.stop, keep))
        bar.step(f"dense model, prompt {number} of {len(prompts)}{half}")
        if layers is None and number == min(_PILOT, len(prompts)):
            curve = mean_curve([reference.curve for reference in references])
            layers = choose_layers(curve, dense.decoder.num_layers)
            for reference in references:
                reference.keep_hidden(layers)
    assert layers is not None  # there is a prompt
    return references, layers


def _search(
    candidates: Sequence[Candidate], half: _Half, other: _Half, lengths: Sequence[int]
) -> tuple[Candidate | None, int]:
    """The cheapest candidate within the bounds on both halves, and how many are left open."""
    # One length stands for all when candidates are compared before they are run.
    length = round(sum(lengths) / len(lengths))
    dense = half.dense.decoder
    found = cheapest(
        candidates,
        [operations(dense, candidate, length) for candidate in candidates],
        harder,
        lambda place: half.run(candidates[place]) and other.run(candidates[place]),
        half.wish.most_runs,
        _WORTH,
        (1 - _WORTH) * operations(dense, Candidate(()), length),
    )
    return None if found.best is None else candidates[found.best], found.open


class _Half:
    """Runs candidates on one half of the prompts, and remembers what came of it."""

    def __init__(
        self,
        dense: DenseModel,
        wish: Wish,
        min_tokens: int,
        bar: _Bar,
        journal: Journal | None,
        prompts: Sequence[Tensor],
        references: Callable[[], Sequence[Reference]],
    ):
        self.dense, self.wish, self.min_tokens, self.bar = dense, wish, min_tokens, bar
        self.journal, self.prompts = journal, prompts
        self._make_references = references
        self.trials: list[Trial] = []

    @cached_property  # computed when the first candidate is run
    def references(self) -> Sequence[Reference]:
        return self._make_references()

    @cached_property
    def _kl(self) -> list[list[float]]:
        """What each prompt has suffered so far."""
        return [[] for _ in self.prompts]

    def run(self, candidate: Candidate) -> bool:
        """Whether a candidate is within the bounds; as few prompts as it takes to know."""
        schedule = candidate.schedule(min_tokens=self.min_tokens)
        outcomes: list[Outcome] = []
        count = len(self.prompts)
        fine = True
        for place in self._order():
            outcomes.append(self._outcome(schedule, place))
            self._kl[place].append(outcomes[-1].kl)
            self.bar.step(f"run {len(self.trials) + 1} ({candidate}){self._best_so_far()}")
            fine = within(self.wish, outcomes, count)
            if not fine:
                break
        self.trials.append(Trial(candidate, mean(outcomes), len(outcomes), count, fine))
        self.bar.step("", count - len(outcomes))
        return fine

    def _outcome(self, schedule: PruningSchedule, place: int) -> Outcome:
        """Of a schedule on one prompt, which an interrupted search may have found."""

        def run() -> Outcome:
            return trial.run(self.dense.decoder, schedule, self.references[place])

        if self.journal is None:
            return run()
        return self.journal.outcome(schedule, self.prompts[place], run)

    def outcome(self, candidate: Candidate | None) -> Outcome | None:
        """Of a candidate that was run; None for none."""
        found = (tried.outcome for tried in self.trials if tried.candidate == candidate)
        return next(found, None)

    def _best_so_far(self) -> str:
        ratios = [tried.outcome.ratio for tried in self.trials if tried.within]
        return f", best {max(ratios):.2f}×" if ratios else ""

    def _order(self) -> list[int]:
        """The prompts that have suffered most come first: they end a hopeless run soonest."""
        means = [sum(kl) / len(kl) if kl else 0.0 for kl in self._kl]
        return sorted(range(len(means)), key=lambda place: (-means[place], place))
