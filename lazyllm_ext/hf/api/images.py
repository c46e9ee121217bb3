"""LazyLLM on the language model within a model that sees images."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.models.forwards import OwnForward
from lazyllm_ext.hf.models.parts import language_of
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .arguments import check_forward_arguments, check_forward_names
from .fallback import Fallback
from .lazy import Lazy
from .replaced import Replaced

# What a call of the whole model asks of the language model within: its cache, and logits_to_keep.
_asked: ContextVar[tuple[LazyCache, int | Tensor] | None] = ContextVar("asked", default=None)


class LazyWithImages(Lazy):
    """The model's own forward makes embeddings of images and text, and projects to logits.

    In between it calls its language model, and that call is what LazyLLM computes.
    """

    def __init__(self, model: Any, schedule: Any, fallback: Fallback, **options: Any):
        super().__init__(model, schedule, fallback, **options)
        language: Any = language_of(model).base
        within = OwnForward(self._language_call, language.forward)
        self._within = Replaced(language, {"forward": within})
        self._plans.accept()

    def remove(self) -> None:
        super().remove()
        self._within.undo()

    def _run(self, arguments: Mapping[str, Any], cache: LazyCache) -> Any:
        check_forward_arguments(arguments, self._signature)
        before = _asked.set((cache, arguments.get("logits_to_keep", 0)))
        try:
            return self._replaced.before("forward")(**arguments, **{CACHE_NAME: cache})
        finally:
            _asked.reset(before)

    def _language_call(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the language model, by the whole one or by somebody else."""
        asked = _asked.get()
        if asked is None:
            return self._within.before("forward")(*args, **kwargs)
        if args:
            raise NotSupportedError("language model: expected to be called with keywords only")
        cache, logits_to_keep = asked
        check_forward_names(kwargs)
        # As many last hidden states as the whole model cuts out to project.
        hidden = self._step(cache, kwargs, logits_to_keep)
        kept = None if kwargs.get("use_cache") is False else cache
        fields: dict[str, Any] = {"last_hidden_state": hidden, CACHE_NAME: kept}
        return self._output(**fields)
