"""The command line: `lazyllm-ext generate`, `eval` and `info`."""

from .app import main

__all__ = ["main"]
