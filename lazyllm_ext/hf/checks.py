"""What a model must be for LazyLLM to run it, checked by name before any work."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .families import Family, family_of

# Rotary embeddings whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_OUTPUT_CAPTURING = "transformers.utils.output_capturing"


def check_model(model: Any) -> Family:
    """The family of a model that LazyLLM can run as it is.

    Raises:
        TypeError: not a transformers model.
        ValueError: an unsupported family, class, mode, placement or modification.
    """
    family = family_of(model)
    check_mode(model)
    _check_placement(model)
    reason = family.refuse(model.config)
    if reason is not None:
        raise ValueError(f"model: {reason}")
    if getattr(model.config, "is_causal", True) is False:
        raise ValueError("model: config.is_causal: expected True, got False")
    _check_structure(model, family)
    _check_rope(model.model.rotary_emb, family)
    return family


def check_mode(model: Any) -> None:
    """Raises ValueError for a model in training mode or compiled in place."""
    if model.training:
        raise ValueError("model: expected inference mode, got training mode; call model.eval()")
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "model: expected a model that is not compiled, got one after model.compile()"
        )


def _check_placement(model: Any) -> None:
    if getattr(model, "_tp_size", None):
        raise ValueError("model: expected an unsharded model, got a tensor-parallel one")
    devices = {tensor.device for tensor in model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise ValueError("model: expected loaded weights, got weights on the meta device")
    if len(devices) > 1:
        got = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"model: expected all weights on one device, got {got}")
    device = next(iter(devices))
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"model: expected a model on cpu or cuda, got {device.type}")
    dtype = model.get_input_embeddings().weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"model: expected float32, bfloat16 or float16 weights, got {dtype}")


def _check_structure(model: Any, family: Family) -> None:
    """The classes and children of everything that the decoder runs itself instead of calling."""
    base = model.model
    check_module("model.model", base, family.base_model)
    check_module("model.model.norm", base.norm, family.norm)
    check_module("model.model.rotary_emb", base.rotary_emb, family.rotary)
    _check_children(model, "model", {"model", "lm_head"})
    _check_children(base, "model.model", {"embed_tokens", "layers", "norm", "rotary_emb"})
    for number, layer in enumerate(base.layers[: model.config.num_hidden_layers]):
        where = f"model.model.layers[{number}]"
        check_module(where, layer, family.decoder_layer)
        _check_children(layer, where, {"self_attn", "mlp", *family.norms})
        for name in family.norms:
            check_module(f"{where}.{name}", getattr(layer, name), family.norm)
        attention = layer.self_attn
        check_module(f"{where}.self_attn", attention, family.attention)
        _check_children(attention, f"{where}.self_attn", family.attention_children)
        for name in ("q_norm", "k_norm") if family.head_norms else ():
            check_module(f"{where}.self_attn.{name}", getattr(attention, name), family.norm)


def check_module(where: str, module: nn.Module, expected: type[nn.Module]) -> None:
    """Raises ValueError unless the module is one of the family's own, running its own forward."""
    if type(module) is not expected:
        raise ValueError(f"{where}: expected {expected.__name__}, got {type(module).__name__}")
    if "forward" in module.__dict__:
        raise ValueError(
            f"{where}: expected the forward of {expected.__name__}, got a replaced one"
        )
    if getattr(module, "gradient_checkpointing", False):
        raise ValueError(f"{where}: expected no gradient checkpointing, got it enabled")
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    for hook in hooks:
        # transformers leaves these in place once hidden states were asked for; they only look on.
        if getattr(hook, "__module__", None) != _OUTPUT_CAPTURING:
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise ValueError(
                f"{where}: expected no forward hook, got {name}: the module is not called, "
                "so it would not run"
            )


def _check_children(module: nn.Module, where: str, expected: set[str]) -> None:
    got = {name for name, _ in module.named_children()}
    if got != expected:
        raise ValueError(
            f"{where}: expected the modules {', '.join(sorted(expected))}, "
            f"got {', '.join(sorted(got))}"
        )


def _check_rope(rotary: Any, family: Family) -> None:
    kinds = rotary.rope_type.values() if family.rope_per_layer_type else [rotary.rope_type]
    for kind in kinds:
        if kind not in _ROPE_TYPES:
            raise ValueError(
                f"model: rope_type: expected {', '.join(_ROPE_TYPES)}, got {kind!r}, "
                "whose frequencies depend on the length or are not known"
            )
