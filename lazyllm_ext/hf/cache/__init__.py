"""The cache of a generation: what a call does with it, its report, and its file."""

from .cache import LazyCache
from .progress import Progress
from .report import Report, SequenceReport

__all__ = ["LazyCache", "Progress", "Report", "SequenceReport"]
