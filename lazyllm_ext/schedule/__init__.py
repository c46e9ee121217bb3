"""Schedules: where tokens are dropped, how many stay, and the rules that all boundaries share."""

from .boundary import Boundary
from .schedule import PruningSchedule, ResolvedSchedule, shipped_schedules

__all__ = ["Boundary", "PruningSchedule", "ResolvedSchedule", "shipped_schedules"]
