"""What a user calls: `apply`, and the `Lazy` that it returns."""

from .apply import apply
from .lazy import Lazy

__all__ = ["Lazy", "apply"]
