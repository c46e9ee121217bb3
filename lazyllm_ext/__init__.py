"""LazyLLM: long prompts computed sooner, by dropping unimportant tokens layer by layer.

    lazy = lazyllm_ext.apply(model, "balanced")  # a transformers causal language model
    model.generate(**inputs, max_new_tokens=64)  # as always
    print(lazy.report())
    lazy.remove()

After Fu et al., "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference"
(arXiv 2407.14057, 2024).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import ops
from .decoder import LazyDecoder, register_builder
from .errors import NotSupportedError
from .schedule import Boundary, PruningSchedule, shipped_schedules
from .version import __version__

if TYPE_CHECKING:
    from . import export
    from .hf import Lazy, LazyCache, Report, apply, load_model, load_tokenizer

__all__ = [
    "Boundary",
    "Lazy",
    "LazyCache",
    "LazyDecoder",
    "NotSupportedError",
    "PruningSchedule",
    "Report",
    "__version__",
    "apply",
    "export",
    "load_model",
    "load_tokenizer",
    "ops",
    "shipped_schedules",
]

# Names that need transformers, which takes seconds to import and which the operators do not need.
_OF_TRANSFORMERS = ("Lazy", "LazyCache", "Report", "apply", "load_model", "load_tokenizer")

register_builder(lambda *args, **how: import_module(".hf", __name__).build_decoder(*args, **how))


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module(".export", __name__)
    if name in _OF_TRANSFORMERS:
        return getattr(import_module(".hf", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
