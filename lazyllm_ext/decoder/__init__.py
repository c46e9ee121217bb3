"""The decoder loop of LazyLLM over packed rows; knows nothing of transformers."""

from .layer import LazyLayer
from .loop import LazyDecoder
from .modules import RMSNorm, Rotary

__all__ = ["LazyDecoder", "LazyLayer", "RMSNorm", "Rotary"]
