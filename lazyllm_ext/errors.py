"""What LazyLLM cannot do, told apart from what was asked wrongly."""

from __future__ import annotations


class NotSupportedError(ValueError):
    """A model or a call that transformers runs and LazyLLM refuses, by name.

    `lazyllm_ext.apply(…, on_error="dense")` lets transformers run it instead. Arguments that are
    wrong for both stay plain ValueErrors.
    """
