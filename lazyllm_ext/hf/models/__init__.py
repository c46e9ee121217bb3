"""The description of transformers models, and the decoder that is built from it."""

from .build import build_decoder
from .families import SUPPORTED

__all__ = ["SUPPORTED", "build_decoder"]
