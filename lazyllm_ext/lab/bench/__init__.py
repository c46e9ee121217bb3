"""The whole model measured beside transformers: verified first, then timed in turn."""

from .measure import measure
from .request import BenchError, Request

__all__ = ["BenchError", "Request", "measure"]
