"""LazyLLM for transformers models, in three rooms; each imports from those after it only.

`api` is what a user calls, `cache` what a call does, `models` the description of models.
"""

from .api import Lazy, ModelDefaults, apply, settle_defaults
from .cache import LazyCache, Progress, Report, SequenceReport
from .models import SUPPORTED, build_decoder

__all__ = [
    "SUPPORTED",
    "Lazy",
    "LazyCache",
    "ModelDefaults",
    "Progress",
    "Report",
    "SequenceReport",
    "apply",
    "build_decoder",
    "settle_defaults",
]
