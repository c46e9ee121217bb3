"""The command line: `lazyllm-ext generate`, `bench`, `eval`, `tune` and `info`."""

from .app import main

__all__ = ["main"]
