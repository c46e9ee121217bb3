"""What a model was when decoders were built around it: the one place that notices what changed."""

from __future__ import annotations

from typing import Any

from lazyllm_ext.errors import NotSupportedError

from .checks import check_mode
from .parts import language_of, parts_of


class Snapshot:
    """The modules and parameters of a model that a decoder uses, as they are now.

    Args:
        model: one that `check_model` let pass.
    """

    def __init__(self, model: Any):
        self._model, self._taken = model, _taken_from(model)

    def check_unchanged(self, *, parts: bool) -> None:
        """Look at what may have changed since; every call of an applied model comes here.

        Args:
            parts: look at each module and parameter, too: a walk over the model, made where a
                cache begins.

        Raises:
            NotSupportedError: the model is in another mode, or a part is no longer the model's.
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
    family, parts = language.family, parts_of(language)
    taken = [(model._modules, "lm_head")] if language.whole else []
    in_base = family.base_children() - {family.layers_name}
    taken += [(language.base._modules, name) for name in in_base]
    if parts.rotary is not None:
        taken += [(parts.rotary._buffers, name) for name in parts.rotary._buffers]
    norms = [parts.norm]
    for layer, attention in zip(parts.layers, parts.attentions, strict=True):
        own = family.layer_norms(layer)
        taken += [(layer._modules, name) for name in own]
        taken += [(layer._modules, name) for name in (family.attention_name, family.mlp_name)]
        taken += [(attention._modules, name) for name in family.attention_children(attention)]
        mlp = getattr(layer, family.mlp_name)._modules
        taken += [(mlp, name) for name in mlp]
        norms += [getattr(layer, name) for name in own]
        norms += [getattr(attention, name) for name in family.attention_norms(attention)]
    taken += [(norm._parameters, name) for norm in norms for name in norm._parameters]
    return [(table, name, table[name]) for table, name in taken]
