"""The decoder loop of LazyLLM over packed rows; knows nothing of transformers."""

from .layer import LazyLayer
from .loop import LazyDecoder, register_builder
from .modules import RMSNorm, Rotary

__all__ = ["LazyDecoder", "LazyLayer", "RMSNorm", "Rotary", "register_builder"]
