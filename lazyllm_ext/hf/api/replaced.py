"""Methods of one model instance that are replaced for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Replaced:
    """Replaces methods of an object, and no other instance's of its class.

    Args:
        methods: what stands in for them, by name.

    """

    def __init__(self, owner: Any, methods: Mapping[str, Any]):
        self._owner, self._methods = owner, dict(methods)
        self._own = {name: owner.__dict__[name] for name in methods if name in owner.__dict__}
        owner.__dict__.update(self._methods)

    def before(self, name: str) -> Any:
        """What the object would do by this name if it were not replaced, to be called."""
        own = self._own.get(name)
        return getattr(type(self._owner), name).__get__(self._owner) if own is None else own

    def undo(self) -> None:
        """Make the object what it was. Nothing happens where that is done already.

        Raises:
            RuntimeError: somebody replaced one of the methods since, and would lose it.
        """
        attributes = self._owner.__dict__
        lost = [name for name, method in self._methods.items() if attributes.get(name) != method]
        if len(lost) == len(self._methods):
            return
        if lost:
            raise RuntimeError(
                f"remove: model.{lost[0]} was replaced after lazyllm_ext.apply; undo that first"
            )
        for name in self._methods:
            del attributes[name]
        attributes.update(self._own)
