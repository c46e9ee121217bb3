"""What a user may do to a model's modules, configuration and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Any], object]


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers, whatever the family calls them."""
    base = model.base_model
    return next(child for child in base.children() if isinstance(child, nn.ModuleList))


def _child(module: nn.Module, *parts: str) -> Any:
    """The first child whose name contains one of these."""
    return next(c for name, c in module.named_children() if any(part in name for part in parts))


def attention_of(model: Any) -> Any:
    return _child(layers_of(model)[1], "attn", "attention")


def _norm(model: Any) -> Any:
    return next(
        m for name, m in layers_of(model)[1].named_children() if "norm" in name or "ln" in name
    )


def _linear(model: Any) -> Any:
    return next(
        m
        for m in layers_of(model)[1].modules()
        if isinstance(getattr(m, "weight", None), nn.Parameter) and m.weight.dim() == 2
    )


PLACES: dict[str, Callable[[Any], Any]] = {
    "model": lambda model: model,
    "base": lambda model: model.base_model,
    "embedding": lambda model: model.get_input_embeddings(),
    "head": lambda model: model.get_output_embeddings(),
    "layer": lambda model: layers_of(model)[1],
    "last layer": lambda model: layers_of(model)[-1],
    "attention": attention_of,
    "mlp": lambda model: _child(layers_of(model)[1], "mlp", "moe", "feed_forward"),
    "norm": _norm,
    "linear": _linear,
}


def _scaled(value: Any) -> Any:
    if isinstance(value, tuple):
        return (_scaled(value[0]), *value[1:])
    if isinstance(value, Tensor) and value.is_floating_point():
        return value * 1.5
    if hasattr(value, "logits"):
        value.logits = value.logits * 1.5
    elif hasattr(value, "last_hidden_state"):
        value.last_hidden_state = value.last_hidden_state * 1.5
    return value


def scale(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook that changes results, as a steering vector does."""
    return _scaled(output)


def scale_inputs(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The same before a module runs."""
    if inputs:
        return (_scaled(inputs[0]), *inputs[1:]), named
    return inputs, {n: _scaled(v) if n == "hidden_states" else v for n, v in named.items()}


def look(module: nn.Module, inputs: Any, output: Any) -> None:
    """A hook that changes nothing, as a probe does."""


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "scale": lambda module: module.register_forward_hook(scale),
    "scale inputs": lambda module: module.register_forward_pre_hook(scale_inputs, with_kwargs=True),
    "look": lambda module: module.register_forward_hook(look),
}


def _copy_layer(model: Any) -> None:
    layers = layers_of(model)
    layers[1] = copy.deepcopy(layers[0])
    for module in layers[1].modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = 1


def _swap(model: Any) -> None:
    layers = layers_of(model)
    layers[0], layers[1] = layers[1], layers[0]


def _new_weight(model: Any) -> None:
    linear = _linear(model)
    linear.weight = nn.Parameter(linear.weight.detach() * 1.25, requires_grad=False)


def _attention_scale(model: Any) -> None:
    attention = attention_of(model)
    if hasattr(attention, "scaling"):
        attention.scaling *= 1.5


def _eps(model: Any) -> None:
    norm = _norm(model)
    name = next(n for n in ("variance_epsilon", "eps") if hasattr(norm, n))
    setattr(norm, name, 0.5)


def _patch_forward(model: Any) -> None:
    attention = attention_of(model)
    plain = attention.forward
    attention.forward = lambda *args, **kwargs: _scaled(plain(*args, **kwargs))


def _in_place(model: Any) -> None:
    with torch.no_grad():
        _linear(model).weight.mul_(1.25)


def _option(name: str, value: Any) -> Edit:
    return lambda model: setattr(model.generation_config, name, value)


def _config(name: str, value: Any) -> Edit:
    return lambda model: setattr(model.config, name, value)


EDITS: dict[str, Edit] = {
    "weights in place": _in_place,
    "a new weight": _new_weight,
    "a copied layer": _copy_layer,
    "layers swapped": _swap,
    "the last layer deleted": lambda model: layers_of(model).__delitem__(-1),
    "a norm's epsilon": _eps,
    "the attention's scale": _attention_scale,
    "the attention's forward": _patch_forward,
    "a copied head": lambda model: model.set_output_embeddings(
        copy.deepcopy(model.get_output_embeddings())
    ),
    "a copied embedding": lambda model: model.set_input_embeddings(
        copy.deepcopy(model.get_input_embeddings())
    ),
    "more tokens": lambda model: model.resize_token_embeddings(90, mean_resizing=False),
    "eager attention": lambda model: model.set_attn_implementation("eager"),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float32": lambda model: model.to(torch.float32),
    "cast to a device": lambda model: model.to("cpu"),
    "training mode": lambda model: model.train(),
    "evaluation mode": lambda model: model.eval(),
    "config: fewer layers": _config("num_hidden_layers", 2),
    "config: no cache": _config("use_cache", False),
    "config: tuples": _config("return_dict", False),
    "config: hidden states": _config("output_hidden_states", True),
    "config: attentions": _config("output_attentions", True),
    "config: router logits": _config("output_router_logits", True),
    "option: beams": _option("num_beams", 2),
    "option: repetition": _option("repetition_penalty", 1.4),
    "option: no cache": _option("use_cache", False),
    "option: lookup": _option("prompt_lookup_num_tokens", 2),
    "option: dict": _option("return_dict_in_generate", True),
    "option: dynamic": _option("cache_implementation", "dynamic"),
    "option: static": _option("cache_implementation", "static"),
    "option: hidden states": _option("output_hidden_states", True),
}
