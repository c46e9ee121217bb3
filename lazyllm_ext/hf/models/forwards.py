"""Whether a module computes what its library wrote, or what somebody put in its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, get_args

from torch import nn
from transformers.utils.generic import ModelOutput

_LIBRARIES = ("torch", "transformers")


class OwnForward:
    """What stands in for a forward on an instance, with the signature that others look at."""

    def __init__(self, method: Callable[..., Any], original: Callable[..., Any]):
        self.method = method
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)


def output_of(kind: type[nn.Module]) -> type[ModelOutput]:
    """The class of what a class of models returns."""
    returned = inspect.signature(kind.forward, eval_str=True).return_annotation
    for each in get_args(returned) or (returned,):
        if isinstance(each, type) and issubclass(each, ModelOutput):
            return each
    raise TypeError(f"{kind.__name__}.forward: expected to return a ModelOutput, got {returned}")


def functions_of(kind: type[nn.Module]) -> Iterator[tuple[dict[str, Any], str]]:
    """The functions that a class's forward calls: (the table they are looked up in, the name).

    Those that stand in the class's own module may call others of it.
    """
    waiting, seen = [inspect.unwrap(kind.forward)], set()
    while waiting:
        function = waiting.pop()
        code, table = getattr(function, "__code__", None), getattr(function, "__globals__", {})
        for name in code.co_names if code else ():
            called = table.get(name)
            if not isinstance(called, FunctionType) or name in seen:
                continue
            seen.add(name)
            yield table, name
            written = inspect.unwrap(called)
            if written.__globals__ is table:
                waiting.append(written)


def foreign_in(kind: type[nn.Module]) -> str | None:
    """The name of what somebody put in the place of a class's forward or of a function in it.

    None: all of it is as PyTorch or transformers have it.
    """
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    written = inspect.unwrap(kind.forward)
    layers = [*_layers(kind.forward), *_layers(kind.__call__)]
    layers += [table[name] for table, name in functions_of(kind)]
    for function in layers:
        if not is_of_a_library(function):
            return function_name(function)
    if getattr(written, "__qualname__", "") != f"{owner.__qualname__}.forward":
        return function_name(written)
    return None


def is_of_a_library(function: Any) -> bool:
    """Whether a function's code is PyTorch's or transformers', whatever it calls itself."""
    table = getattr(function, "__globals__", None)
    return table is not None and table.get("__name__", "").partition(".")[0] in _LIBRARIES


def function_name(function: Any) -> str:
    """Where a function stands, and what it is called there."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _layers(function: Any) -> Iterator[Any]:
    """A function and those that it wraps."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)
