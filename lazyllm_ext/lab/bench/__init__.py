"""The whole model measured beside transformers: verified first, then timed in turn."""

from .measure import measure
from .request import BenchError, BenchRequest

__all__ = ["BenchError", "BenchRequest", "measure"]
