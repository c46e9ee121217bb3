"""LazyLLM for transformers models: what a user calls, the cache, the models' description."""

from .api import Lazy, apply
from .cache import LazyCache, Progress, Report, SequenceReport
from .models import SUPPORTED, build_decoder

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
