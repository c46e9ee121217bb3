"""What a model was when decoders were built around it: the one place that notices what changed."""

from __future__ import annotations

from typing import Any

from lazyllm_ext.errors import NotSupportedError

from .checks import check_mode
from .parts import language_of, pieces_of


class Snapshot:
    """The modules and parameters of a model that a decoder uses, as they are now.

    Args:
        model: one that `check_model` let pass.
    """

    def __init__(self, model: Any):
        self._model, self._taken = model, _taken_from(model)

    def check_unchanged(self, *, parts: bool) -> None:
        """Raises NotSupportedError for another mode, or a part that is no longer the model's.

        Every call comes here. `parts` is a walk over the model, made where a cache begins.
        """
        check_mode(self._model)
        for table, name, part in self._taken if parts else ():
            if table.get(name) is not part:
                raise NotSupportedError(
                    f"model: {name} was replaced, moved or cast after lazyllm_ext.apply; remove() "
                    "and apply again"
                )


def _taken_from(model: Any) -> list[tuple[dict[str, Any], str, Any]]:
    """Everything that a decoder took from a model: (the owner's table, its name in it, the thing).

    A part that is no longer in its place has been replaced since the decoder was built.
    """
    language = language_of(model)
    family = language.family
    taken = [(model._modules, "lm_head")] if language.whole else []
    for piece in pieces_of(language):
        tables = piece.module._modules
        taken += [(tables, name) for name in piece.children if name != family.layers_name]
        if family.mlp_name in piece.children:
            mlp = tables[family.mlp_name]._modules
            taken += [(mlp, name) for name in mlp]
        if piece.read:
            held = getattr(piece.module, piece.read)
            taken += [(held, name) for name in held]
    return [(table, name, table[name]) for table, name in taken]
