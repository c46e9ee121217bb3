"""The schedules in use on one model, and the decoder of each."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.hf.cache.plan import Plan
from lazyllm_ext.hf.cache.progress import tell_watcher
from lazyllm_ext.hf.models.build import build_decoder
from lazyllm_ext.hf.models.checks import Snapshot
from lazyllm_ext.hf.models.ranks import refuse_ranks
from lazyllm_ext.schedule import PruningSchedule

from .payoff import min_tokens_of

_LAST_PLANS = 16  # of single calls, kept for further calls


class Plans:
    """One decoder for the schedule applied, and one for each that single calls brought."""

    def __init__(self, model: Any, schedule: Any, checked: bool, min_tokens: Any = None):
        self._model, self._checked = model, checked
        # As long as a cache is there that was begun with it, or it is one of the last ones.
        self.decoders: MutableMapping[Plan, LazyDecoder] = WeakKeyDictionary()
        self._last: deque[Plan] = deque(maxlen=_LAST_PLANS)
        own = self._own(schedule)
        if min_tokens is not None:
            own = replace(own, min_tokens=min_tokens)
        self.applied = self._add(own)  # the plan of calls that bring none
        self.snapshot = Snapshot(model)  # as the first decoder was built from it

    def of(self, schedule: Any) -> Plan:
        """The plan of a call's own schedule; None: the one applied."""
        if schedule is None:
            return self.applied
        own = self._own(schedule)
        for plan in list(self.decoders):
            if plan.schedule == own:
                return plan
        self.snapshot.check_unchanged(parts=True)
        return self._add(own)

    def _own(self, schedule: Any) -> PruningSchedule:
        loaded = PruningSchedule.load(schedule)
        return loaded.for_model(getattr(self._model.config, "name_or_path", None))

    def _add(self, schedule: PruningSchedule) -> Plan:
        least = schedule.min_tokens
        if least == "auto":
            refuse_ranks(self._model, 'min_tokens="auto"')  # each would measure another number
            least = min_tokens_of(self._model, schedule)
        decoder: LazyDecoder = build_decoder(
            self._model, replace(schedule, min_tokens=least), checked=self._checked
        )
        boundary_layers = [layer for layer, number in enumerate(decoder.boundary_at) if number >= 0]
        decoder.on_layer = tell_watcher
        plan = Plan(decoder.spec, schedule, tuple(boundary_layers), least)
        self.decoders[plan] = decoder
        self._last.append(plan)
        return plan
