"""What a model must be for LazyLLM to run it, checked by name before any work, and later again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import nn

from lazyllm_ext.errors import NotSupportedError, refusal

from .parts import Language, language_of, pieces_of
from .ranks import check_ranks
from .versions import only_sums_gradients

# Rotary embeddings whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_LAYER_TYPES = ("full_attention", "sliding_attention")

_OUTPUT_CAPTURING = "transformers.utils.output_capturing"


def check_model(model: Any) -> Language:
    """The language model of a model that LazyLLM can run as it is.

    Raises:
        TypeError: not a transformers model.
        NotSupportedError: an unsupported family, class, mode, placement or modification.
    """
    language = language_of(model)
    family, config = language.family, language.config
    check_mode(model)
    check_placement(model)
    reason = family.refuse(config)
    if reason is not None:
        raise NotSupportedError(f"model: {reason}")
    if getattr(config, "is_causal", True) is False:
        raise refusal("model: config.is_causal", True, False)
    _check_layer_types(config)
    if language.whole:
        _check_children(model, "model", {family.base, "lm_head"})
    for piece in pieces_of(language):
        _check_module(piece.where, piece.module, piece.expected)
        if piece.children:
            _check_children(piece.module, piece.where, piece.children)
    check_ranks(model, language)
    if family.rotary is not None:
        _check_rope(language.base.rotary_emb)
    return language


def check_mode(model: Any) -> None:
    """Raises NotSupportedError for a model in training mode or compiled in place."""
    if model.training:
        raise refusal("model", "inference mode", "training mode; call model.eval()")
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise refusal("model", "a model that is not compiled", "one after model.compile()")


def check_placement(model: Any) -> None:
    """NotSupportedError for weights that are not all on one device of a supported kind."""
    placed = sorted(
        {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    )
    if len(placed) > 1:
        raise refusal("model", "all of it on one device", f"a device_map over {', '.join(placed)}")
    devices = {tensor.device for tensor in model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise refusal("model", "loaded weights", "weights on the meta device")
    if len(devices) > 1:
        raise refusal("model", "all weights on one device", ", ".join(sorted(map(str, devices))))
    device = next(iter(devices))
    if device.type not in ("cpu", "cuda"):
        raise refusal("model", "a model on cpu or cuda", device.type)
    dtype = model.get_input_embeddings().weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise refusal("model", "float32, bfloat16 or float16 weights", dtype)


class OwnForward:
    """What stands in for a forward on an instance, with the signature that others look at."""

    def __init__(self, method: Callable[..., Any], original: Callable[..., Any]):
        self.method = method
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)


def _check_module(where: str, module: nn.Module, expected: type[nn.Module]) -> None:
    """NotSupportedError unless the module is one of the family's, running its own forward."""
    if type(module) is not expected:
        raise refusal(where, expected.__name__, type(module).__name__)
    replaced = module.__dict__.get("forward")
    own = replaced is None or isinstance(replaced, OwnForward) or only_sums_gradients(module)
    if not own:
        raise refusal(where, f"the forward of {expected.__name__}", "a replaced one")
    if getattr(module, "gradient_checkpointing", False):
        raise refusal(where, "no gradient checkpointing", "it enabled")
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    for hook in hooks:
        # transformers leaves these in place once hidden states were asked for; they only look on.
        if getattr(hook, "__module__", None) != _OUTPUT_CAPTURING:
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise refusal(
                where, "no forward hook", f"{name}: the module is not called, so it would not run"
            )


def _check_children(module: nn.Module, where: str, expected: Set[str]) -> None:
    # Dropout does nothing in inference mode.
    got = {name for name, child in module.named_children() if type(child) is not nn.Dropout}
    if got != expected:
        raise refusal(where, f"the modules {', '.join(sorted(expected))}", ", ".join(sorted(got)))


def _check_layer_types(config: Any) -> None:
    for kind in set(getattr(config, "layer_types", None) or ()):
        if kind not in _LAYER_TYPES:
            raise refusal("model: config.layer_types", " and ".join(_LAYER_TYPES), repr(kind))


def _check_rope(rotary: Any) -> None:
    kinds = rotary.rope_type  # one for every type of layer, or for all
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if kind not in _ROPE_TYPES:
            raise refusal(
                "model: rope_type",
                ", ".join(_ROPE_TYPES),
                f"{kind!r}, whose frequencies depend on the length or are not known",
            )


class Snapshot:
    """The modules and parameters that a decoder uses of a model, which `check_model` let pass."""

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
