"""The schedules in use on one model, and the decoder of each, of the model as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.hf.cache.plan import Plan
from lazyllm_ext.hf.cache.progress import tell_watcher
from lazyllm_ext.hf.models.build import build_decoder
from lazyllm_ext.hf.models.checks import check_mode, check_model
from lazyllm_ext.hf.models.ranks import refuse_ranks
from lazyllm_ext.hf.models.snapshot import Snapshot
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.schedule import PruningSchedule

from .payoff import min_tokens_of

_LAST_PLANS = 16  # of single calls, kept for further calls

# Of a decoder: what its user may have set, and the next one keeps.
_CALLBACKS = ("on_layer", "on_importance")


@dataclass(frozen=True)
class _Built:
    """A decoder, and the model as it was when it was built from it."""

    decoder: LazyDecoder | None  # None: not yet
    model: Snapshot | None
    callbacks: tuple[Any, ...] = (tell_watcher, None)  # what the decoder to be built shall have

    def successor(self, decoder: LazyDecoder, model: Snapshot | None) -> _Built:
        """Another one in its place, which calls what its user had this one call."""
        for name, value in zip(_CALLBACKS, self.kept(), strict=True):
            setattr(decoder, name, value)
        return _Built(decoder, model)

    def kept(self) -> tuple[Any, ...]:
        """The callbacks of this decoder."""
        if self.decoder is None:
            return self.callbacks
        return tuple(getattr(self.decoder, name) for name in _CALLBACKS)


class Plans:
    """One decoder for the schedule applied, and one for each that single calls brought.

    Whatever of the model changes that a decoder stands in for or reads, the next call builds its
    decoder anew, or says why it cannot.
    """

    def __init__(self, model: Any, schedule: Any, checked: bool, min_tokens: Any = None):
        self._model, self._checked = model, checked
        # As long as a cache is there that was begun with it, or it is one of the last ones.
        self._built: MutableMapping[Plan, _Built] = WeakKeyDictionary()
        self._last: deque[Plan] = deque(maxlen=_LAST_PLANS)
        self._snapshot: Snapshot | None = None
        own = self._own(schedule)
        if min_tokens is not None:
            own = replace(own, min_tokens=min_tokens)
        self.applied = self._add(own)  # the plan of calls that bring none

    def __contains__(self, plan: object) -> bool:
        return plan in self._built

    def accept(self) -> None:
        """Take the model as it is, with its methods replaced, for what every decoder is of."""
        self._snapshot = Snapshot(self._model)
        for plan, built in list(self._built.items()):
            self._built[plan] = replace(built, model=self._snapshot)

    # A compiler would see other objects than those that are compared.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def of(self, schedule: Any) -> Plan:
        """The plan of a call's own schedule; None: the one applied. Every call comes here.

        Raises:
            NotSupportedError: the model is no longer one that LazyLLM runs, and why.
            ValueError: the schedule is not right, or no longer fits the model.
        """
        check_mode(self._model)
        if self._snapshot is None or not self._snapshot.holds():
            check_model(self._model)
            self._snapshot = Snapshot(self._model)
        if schedule is None:
            if self._current(self.applied) is None:  # other layers: another plan
                before = self._built[self.applied]
                plan = self._add(self.applied.schedule, self.applied.min_tokens)
                self._built[plan] = before.successor(self.decoder(plan), self._snapshot)
                self.applied = plan
            return self.applied
        own = self._own(schedule)
        for plan in list(self._built):
            if plan.schedule == own and self._current(plan) is not None:
                return plan
        return self._add(own)

    def decoder(self, plan: Plan) -> LazyDecoder:
        """The decoder of a plan, for the model as the last call found it.

        Raises:
            ValueError: the model has other layers than when the plan was made.
        """
        decoder = self._current(plan)
        if decoder is None:
            raise ValueError(
                f"{CACHE_NAME}: expected a cache of the model as it is, got one that was begun "
                "when its layers were others"
            )
        return decoder

    def _current(self, plan: Plan) -> LazyDecoder | None:
        """The decoder of a plan; None if it is of a model with other layers."""
        built = self._built[plan]
        if built.decoder is None or built.model is not self._snapshot:
            decoder = self._build(plan.schedule, plan.min_tokens)
            if decoder.spec != plan.spec:
                return None
            built = self._built[plan] = built.successor(decoder, self._snapshot)
        return built.decoder

    def _own(self, schedule: Any) -> PruningSchedule:
        loaded = PruningSchedule.load(schedule)
        return loaded.for_model(getattr(self._model.config, "name_or_path", None))

    def _add(self, schedule: PruningSchedule, found: int | None = None) -> Plan:
        least = schedule.min_tokens if found is None else found
        if least == "auto":
            refuse_ranks(self._model, 'min_tokens="auto"')  # each would measure another number
            least = min_tokens_of(self._model, schedule)
        decoder = self._build(schedule, least)
        decoder.on_layer = tell_watcher
        boundary_layers = [layer for layer, number in enumerate(decoder.boundary_at) if number >= 0]
        plan = Plan(decoder.spec, schedule, tuple(boundary_layers), least)
        self._built[plan] = _Built(decoder, self._snapshot)
        self._last.append(plan)
        return plan

    def _build(self, schedule: PruningSchedule, least: int) -> LazyDecoder:
        decoder: LazyDecoder = build_decoder(
            self._model, replace(schedule, min_tokens=least), checked=self._checked
        )
        return decoder

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a file: the plans, whose decoders are built where they are."""
        built = {plan: _Built(None, None, each.kept()) for plan, each in self._built.items()}
        return {**vars(self), "_built": built, "_snapshot": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._built = WeakKeyDictionary(state["_built"])
