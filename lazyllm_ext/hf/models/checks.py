"""What a model must be for LazyLLM to run it, checked by name before any work."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lazyllm_ext.errors import NotSupportedError

from .modules import OwnForward
from .parts import Language, language_of, parts_of
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
        raise NotSupportedError("model: config.is_causal: expected True, got False")
    _check_layer_types(config)
    if language.whole:
        _check_children(model, "model", {family.base, "lm_head"})
    _check_structure(language)
    check_ranks(model, language)
    if family.rotary is not None:
        _check_rope(language.base.rotary_emb)
    return language


def check_mode(model: Any) -> None:
    """Raises NotSupportedError for a model in training mode or compiled in place."""
    if model.training:
        raise NotSupportedError(
            "model: expected inference mode, got training mode; call model.eval()"
        )
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise NotSupportedError(
            "model: expected a model that is not compiled, got one after model.compile()"
        )


def check_placement(model: Any) -> None:
    """NotSupportedError for weights that are not all on one device of a supported kind."""
    placed = sorted(
        {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    )
    if len(placed) > 1:
        raise NotSupportedError(
            f"model: expected all of it on one device, got a device_map over {', '.join(placed)}"
        )
    devices = {tensor.device for tensor in model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise NotSupportedError("model: expected loaded weights, got weights on the meta device")
    if len(devices) > 1:
        got = ", ".join(sorted(str(device) for device in devices))
        raise NotSupportedError(f"model: expected all weights on one device, got {got}")
    device = next(iter(devices))
    if device.type not in ("cpu", "cuda"):
        raise NotSupportedError(f"model: expected a model on cpu or cuda, got {device.type}")
    dtype = model.get_input_embeddings().weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise NotSupportedError(
            f"model: expected float32, bfloat16 or float16 weights, got {dtype}"
        )


def _check_structure(language: Language) -> None:
    """The classes and children of everything that the decoder runs itself instead of calling."""
    family, base, where = language.family, language.base, language.where
    check_module(where, base, family.base_model)
    _check_children(base, where, family.base_children())
    parts = parts_of(language)
    check_module(f"{where}.{family.final_norm}", parts.norm, family.norm)
    if family.rotary is not None:
        check_module(f"{where}.rotary_emb", parts.rotary, family.rotary)
    if parts.positions is not None:
        check_module(f"{where}.{family.positions_name}", parts.positions, nn.Embedding)
    for number, (layer, attention) in enumerate(zip(parts.layers, parts.attentions, strict=True)):
        of_layer = f"{where}.{family.layers_name}[{number}]"
        check_module(of_layer, layer, family.decoder_layer)
        norms = family.layer_norms(layer)
        _check_children(layer, of_layer, {family.attention_name, family.mlp_name, *norms})
        for name in norms:
            check_module(f"{of_layer}.{name}", getattr(layer, name), family.norm)
        of_attention = f"{of_layer}.{family.attention_name}"
        check_module(of_attention, attention, family.attention)
        _check_children(attention, of_attention, family.attention_children(attention))
        for name in family.attention_norms(attention):
            check_module(f"{of_attention}.{name}", getattr(attention, name), family.norm)


def check_module(where: str, module: nn.Module, expected: type[nn.Module]) -> None:
    """NotSupportedError unless the module is one of the family's, running its own forward."""
    if type(module) is not expected:
        raise NotSupportedError(
            f"{where}: expected {expected.__name__}, got {type(module).__name__}"
        )
    replaced = module.__dict__.get("forward")
    own = replaced is None or isinstance(replaced, OwnForward) or only_sums_gradients(module)
    if not own:
        raise NotSupportedError(
            f"{where}: expected the forward of {expected.__name__}, got a replaced one"
        )
    if getattr(module, "gradient_checkpointing", False):
        raise NotSupportedError(f"{where}: expected no gradient checkpointing, got it enabled")
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    for hook in hooks:
        # transformers leaves these in place once hidden states were asked for; they only look on.
        if getattr(hook, "__module__", None) != _OUTPUT_CAPTURING:
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise NotSupportedError(
                f"{where}: expected no forward hook, got {name}: the module is not called, "
                "so it would not run"
            )


def _check_children(module: nn.Module, where: str, expected: set[str]) -> None:
    # Dropout does nothing in inference mode.
    got = {name for name, child in module.named_children() if type(child) is not nn.Dropout}
    if got != expected:
        raise NotSupportedError(
            f"{where}: expected the modules {', '.join(sorted(expected))}, "
            f"got {', '.join(sorted(got))}"
        )


def _check_layer_types(config: Any) -> None:
    for kind in set(getattr(config, "layer_types", None) or ()):
        if kind not in _LAYER_TYPES:
            raise NotSupportedError(
                f"model: config.layer_types: expected {' and '.join(_LAYER_TYPES)}, got {kind!r}"
            )


def _check_rope(rotary: Any) -> None:
    kinds = rotary.rope_type  # one for every type of layer, or for all
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if kind not in _ROPE_TYPES:
            raise NotSupportedError(
                f"model: rope_type: expected {', '.join(_ROPE_TYPES)}, got {kind!r}, "
                "whose frequencies depend on the length or are not known"
            )
