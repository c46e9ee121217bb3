"""The command line: `lazyllm-ext generate`, `bench` and `info`."""

from .app import main

__all__ = ["main"]
