"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lazyllm-ext")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "unknown"
