"""LazyLLM for transformers models: `apply`, the cache, the families."""

from .apply import apply
from .build import build_decoder
from .cache import LazyCache
from .families import SUPPORTED
from .lazy import Lazy
from .progress import Progress
from .report import Report, SequenceReport

__all__ = [
    "SUPPORTED",
    "Lazy",
    "LazyCache",
    "Progress",
    "Report",
    "SequenceReport",
    "apply",
    "build_decoder",
]
