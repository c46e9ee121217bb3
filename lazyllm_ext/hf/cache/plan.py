"""What a cache knows of the decoder that fills it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lazyllm_ext.schedule import PruningSchedule
from lazyllm_ext.state import StoreSpec


@dataclass(frozen=True, eq=False)
class Plan:
    """One object per schedule of an `apply`; a cache belongs to the plan that it was begun with."""

    spec: StoreSpec
    schedule: PruningSchedule  # as it was asked for
    boundary_layers: tuple[int, ...]
    min_tokens: int  # what was found where the schedule says "auto"

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self  # a copied cache still belongs to the same decoder
