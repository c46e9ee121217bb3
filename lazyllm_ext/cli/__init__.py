"""The command line: `lazyllm-ext generate`, `bench`, `eval`, `tune`, `serve` and others."""

from .app import main

__all__ = ["main"]
