"""The command line: `lazyllm-ext generate` and `lazyllm-ext info`."""

from .app import main

__all__ = ["main"]
