"""A model as it was when a decoder was built from it, to be compared with what it is now."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import is_, itemgetter
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks_of_all
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .checks import classes_of
from .forwards import functions_of
from .parts import Language, language_of, parts_of, pieces_of

# transformers changes it itself within a generation on a GPU; experts are called as they are.
_FREE = "_experts_implementation_internal"

_CONFIG = itemgetter("config")


class Snapshot:
    """All that a decoder stands in for or reads of a model.

    These are, of each piece (`pieces_of`): its attributes, modules, parameters, buffers and hooks;
    the classes of pieces and of MLPs; and the configuration, the forwards of the classes with the
    functions that they call, attention functions that are registered, and hooks on all modules.
    What the decoder calls (projections, MLPs, embeddings) may change within; whether it is the same
    module is a part of its owner.

    Each step of decoding looks, so the tables are compared by C code alone: 1 to 2 µs for a layer.
    """

    def __init__(self, model: Any):
        language = language_of(model)
        tables = list(_tables_of(model, language))
        self._tables, self._lengths = tables, list(map(len, tables))
        self._filled = [table for table in tables if table]
        self._values = list(chain.from_iterable(map(dict.values, self._filled)))
        owners = [piece.module for piece in pieces_of(language)]
        self._typed = [model, *owners, *_mlps_of(language)]
        self._kinds = list(map(type, self._typed))
        self._attributes = [vars(owner) for owner in (model, *owners)]
        self._were = [dict(table) for table in self._attributes]
        self._configured = [table for table in self._attributes if "config" in table]
        self._configs = list(map(_CONFIG, self._configured))
        own = {id(config): vars(config) for config in (*self._configs, language.config)}
        self._settings = list(own.values())
        self._set = _copied(self._settings)
        self._classes = sorted(classes_of(model, language), key=repr)
        self._forwards = list(_forwards(self._classes))
        called = list(chain.from_iterable(map(functions_of, self._classes)))
        called.append((vars(F), "scaled_dot_product_attention"))  # what kernels of others replace
        self._callers, self._names = [table for table, _ in called], [name for _, name in called]
        self._called = list(map(dict.get, self._callers, self._names))
        # Moving and casting a model changes its parameters, and keeps them.
        self._weight = next(language.base.parameters())
        self._placed = self._weight.dtype, self._weight.device

    def holds(self) -> bool:
        """Whether the model is what it was."""
        try:
            return (
                list(map(len, self._tables)) == self._lengths
                and list(map(type, self._typed)) == self._kinds
                and all(map(is_, chain.from_iterable(map(dict.values, self._filled)), self._values))
                # Of equal attributes only configurations matter, whose own are looked at.
                and self._attributes == self._were
                and all(map(is_, map(_CONFIG, self._configured), self._configs))
                and (
                    self._settings == self._set or _but_free(self._settings) == _but_free(self._set)
                )
                and (self._weight.dtype, self._weight.device) == self._placed
                and list(_forwards(self._classes)) == self._forwards
                and list(map(dict.get, self._callers, self._names)) == self._called
            )
        except (RuntimeError, LookupError):  # another tensor, or none
            return False


def _tables_of(model: Any, language: Language) -> Iterator[dict[Any, Any]]:
    yield hooks_of_all._global_forward_hooks
    yield hooks_of_all._global_forward_pre_hooks
    owner = model
    for name in language.where.split(".")[1:]:
        yield owner._modules
        owner = getattr(owner, name)
    family, base = language.family, language.base
    yield getattr(base, family.layers_name)._modules
    yield getattr(base, family.embed_name)._parameters
    for piece in pieces_of(language):
        module = piece.module
        yield from (module._modules, module._parameters, module._buffers)
        yield from (module._forward_hooks, module._forward_pre_hooks)
        if family.mlp_name in piece.children:
            yield module._modules[family.mlp_name]._modules
    for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        yield from (functions._global_mapping, functions._local_mapping)


def _mlps_of(language: Language) -> Iterator[nn.Module]:
    """Each MLP and what it consists of, which the decoder may compute by itself."""
    for layer in parts_of(language).layers:
        mlp = getattr(layer, language.family.mlp_name)
        yield from (mlp, *mlp.children())


def _forwards(classes: list[type[nn.Module]]) -> Iterator[Any]:
    for kind in classes:
        yield kind.forward
        yield kind.__call__


def _copied(value: Any) -> Any:
    """Dictionaries and lists, of which others may change elements, with all that is in them."""
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _but_free(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**each, _FREE: None} for each in settings]
