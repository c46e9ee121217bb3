"""What happens to a refusal: it is raised, or transformers runs the model instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME

# The models of this thread or task whose generate is transformers' own for now.
_dense: ContextVar[tuple[Any, ...]] = ContextVar("dense", default=())


@contextmanager
def as_transformers(model: Any) -> Iterator[None]:
    """Everything within runs this model without LazyLLM."""
    before = _dense.set((*_dense.get(), model))
    try:
        yield
    finally:
        _dense.reset(before)


def is_dense(model: Any) -> bool:
    """Whether this call stands within `as_transformers`."""
    return any(one is model for one in _dense.get())


class Fallback:
    """What `on_error` of `apply` asks for."""

    def __init__(self, on_error: str):
        if on_error not in ("raise", "dense"):
            raise ValueError(f'on_error: expected "raise" or "dense", got {on_error!r}')
        self.dense = on_error == "dense"
        self._said: set[str] = set()
        self._begun: WeakSet[Any] = WeakSet()  # caches of calls that transformers computed

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a file, to which those caches do not go."""
        return {**vars(self), "_begun": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _begun=WeakSet())

    def accept(self, refusal: NotSupportedError, cache: Any = None) -> None:
        """Warn, once for each reason, that transformers runs what was refused.

        The refusal is raised again if nothing else is asked for, or if the call has a cache that
        only LazyLLM can go on from: one that holds tokens, or that the caller made.
        """
        ours = isinstance(cache, LazyCache)
        if not self.dense or (ours and not (cache.may_fall_back and cache.state is None)):
            raise refusal
        reason = re.sub(r"\d+", "…", str(refusal))  # other numbers are no other reason
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(
                f"LazyLLM refused, and transformers computes the dense model instead: {refusal}",
                UserWarning,
                stacklevel=3,
            )

    def begin(self, result: Any) -> None:
        """Remember the cache of a call that transformers computed."""
        cache = getattr(result, CACHE_NAME, None)
        if cache is not None:
            self._begun.add(cache)

    def goes_on(self, cache: Any) -> bool:
        """Whether the call goes on from one that transformers computed: nothing new to warn of."""
        return cache is not None and cache in self._begun
