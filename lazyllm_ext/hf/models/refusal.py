"""How a refusal is worded."""

from __future__ import annotations

from lazyllm_ext.errors import NotSupportedError


def refusal(what: str, expected: object, got: object) -> NotSupportedError:
    """To be raised where `what` of a model or a call is not as LazyLLM needs it."""
    return NotSupportedError(f"{what}: expected {expected}, got {got}")
