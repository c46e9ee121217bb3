"""What LazyLLM cannot do, told apart from what was asked wrongly."""

from __future__ import annotations


class NotSupportedError(ValueError):
    """A model or a call that transformers runs and LazyLLM refuses, by name.

    `lazyllm_ext.apply(…, on_error="dense")` lets transformers run it instead. Arguments that are
    wrong for both stay plain ValueErrors.
    """


def refusal(what: str, expected: object, got: object) -> NotSupportedError:
    """To be raised where `what` of a model or a call is not as LazyLLM needs it."""
    return NotSupportedError(f"{what}: expected {expected}, got {got}")
