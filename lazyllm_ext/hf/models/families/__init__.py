"""The families of models, by `config.model_type`; docs/adding-a-family.md says how to add one.

`table` has an entry for each family, in the terms of `family`; `wrappers` the models that see
images around one; `reasons` why other types are refused. `lookup` finds a model's own.
"""

from .family import Family
from .lookup import SUPPORTED, family_of, text_model_of
from .reasons import REASONS
from .wrappers import WRAPPERS

__all__ = ["REASONS", "SUPPORTED", "WRAPPERS", "Family", "family_of", "text_model_of"]
