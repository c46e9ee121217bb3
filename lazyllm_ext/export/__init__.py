"""Models that leave Python: a decoder with its schedule and its state, as a file.

    lazyllm_ext.export.torchscript(model, "balanced", "model.pt", tokenizer=tokenizer)
    exported = lazyllm_ext.export.load("model.pt")
    for token in exported.generate(ids, max_new_tokens=64): ...

docs/export.md says what an export holds, and how other programs run it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .description import Description
from .loading import Exported, load

if TYPE_CHECKING:
    from .writing import aoti, torchscript

__all__ = ["Description", "Exported", "aoti", "load", "torchscript"]


def __getattr__(name: str) -> Any:
    if name in ("aoti", "torchscript"):  # they need transformers; loading an export does not
        return getattr(import_module(".writing", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
