"""LazyLLM on the language model within a model that sees images."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.cache.inputs import one_cache
from lazyllm_ext.hf.models.modules import OwnForward
from lazyllm_ext.hf.models.parts import language_of
from lazyllm_ext.hf.models.refuse import refuse_forward_arguments, refuse_unknown_arguments
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .fallback import Fallback
from .lazy import Lazy

# What a call of the whole model asks of the language model within: its cache, and logits_to_keep.
_asked: ContextVar[tuple[LazyCache, int | Tensor] | None] = ContextVar("asked", default=None)


class LazyWithImages(Lazy):
    """The model's own forward makes embeddings of images and text, and projects to logits.

    In between it calls its language model, and that call is what LazyLLM computes.
    """

    def __init__(self, model: Any, schedule: Any, fallback: Fallback, **options: Any):
        self._language: Any = language_of(model).base
        self._language_before = self._language.forward
        own: Any = OwnForward(self._whole, model.forward)
        self._signature = own.__signature__
        self.forward = own  # type: ignore[method-assign]
        self._within = OwnForward(self._language_call, self._language_before)
        super().__init__(model, schedule, fallback, **options)
        self._language.__dict__["forward"] = self._within

    def remove(self) -> None:
        super().remove()
        if self._language.__dict__.get("forward") is self._within:
            del self._language.__dict__["forward"]

    def _whole(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the whole model; arguments as it takes them, and `lazy_schedule`."""
        arguments = self._signature.bind(*args, **kwargs).arguments
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:  # not the same name in every model
                arguments.update(arguments.pop(name, {}))
        given = one_cache(arguments.pop("cache", None), arguments.pop("past_key_values", None))
        schedule = arguments.pop("lazy_schedule", None)
        call = {name: value for name, value in arguments.items() if value is not None}
        return self._call(call, given, schedule)

    def _run(self, call: Mapping[str, Any], cache: LazyCache) -> Any:
        refuse_forward_arguments(call)
        before = _asked.set((cache, call.get("logits_to_keep", 0)))
        try:
            return self._before["forward"](**call, **{CACHE_NAME: cache})
        finally:
            _asked.reset(before)

    def _language_call(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the language model, by the whole one or by somebody else."""
        asked = _asked.get()
        if asked is None:
            return self._language_before(*args, **kwargs)
        if args:
            raise NotSupportedError("language model: expected to be called with keywords only")
        cache, logits_to_keep = asked
        refuse_unknown_arguments(kwargs)
        # As many last hidden states as the whole model cuts out to project.
        hidden = self._step(cache, kwargs, logits_to_keep)
        kept = None if kwargs.get("use_cache") is False else cache
        fields: dict[str, Any] = {"last_hidden_state": hidden, CACHE_NAME: kept}
        return BaseModelOutputWithPast(**fields)
