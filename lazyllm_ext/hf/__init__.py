"""LazyLLM for transformers models, in three rooms; each imports from those after it only.

`api` is what a user calls, `cache` what a call does, `models` the description of models.
"""

from .api import Lazy, ModelDefaults, apply, sampling_of, settle_defaults
from .cache import LazyCache, Progress, Report, SequenceReport
from .models import SUPPORTED, as_chat, build_decoder, check_tokens, load_model, load_tokenizer

__all__ = [
    "SUPPORTED",
    "Lazy",
    "LazyCache",
    "ModelDefaults",
    "Progress",
    "Report",
    "SequenceReport",
    "apply",
    "as_chat",
    "build_decoder",
    "check_tokens",
    "load_model",
    "load_tokenizer",
    "sampling_of",
    "settle_defaults",
]
