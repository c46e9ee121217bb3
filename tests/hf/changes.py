"""Ways to change a model, before `apply` or after it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers.models.llama.modeling_llama as llama
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from .every_model import tiny_of
from .tiny import tiny_model

Change = Callable[[Any], object]


def set_to(path: str, name: str, value: Any) -> Change:
    """Another value of an attribute, or what a function makes of the one that is there."""

    def change(model: Any) -> None:
        owner = model.config if path == "config" else model.get_submodule(path)
        now = value(getattr(owner, name)) if callable(value) else value
        setattr(owner, name, now)

    return change


def times(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def hooked(path: str, kind: str = "forward") -> Change:
    """A hook that changes what goes in or comes out, in the last column."""

    def pre(module: nn.Module, args: Any) -> Any:
        return (last_of(args[0]), *args[1:])

    def post(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return last_of(output)
        return (last_of(output[0]), *output[1:])

    def change(model: Any) -> None:
        module = model.get_submodule(path)
        if kind == "pre":
            module.register_forward_pre_hook(pre)
        else:
            module.register_forward_hook(post)

    return change


def last_of(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return (x + 1) % 83
    x = x.clone()
    x[:, -1] *= 1.5
    return x


def forwarded(path: str) -> Change:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        own = module.forward
        module.forward = lambda *args, **kwargs: own(*args, **kwargs)

    return change


def parameter_of(path: str, name: str = "weight") -> Change:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        setattr(module, name, nn.Parameter(getattr(module, name) * 1.5, requires_grad=False))

    return change


def edit_layers(edit: Callable[[list[nn.Module]], list[nn.Module]]) -> Change:
    def change(model: Any) -> None:
        model.model.layers = nn.ModuleList(edit(list(model.model.layers)))

    return change


def swap_in_place(model: Any) -> None:
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]


def delete_in_place(model: Any) -> None:
    del model.model.layers[1]


def insert_layer(model: Any) -> None:
    new = tiny_model("llama").model.layers[3]
    with torch.no_grad():
        new.mlp.up_proj.weight.mul_(1.5)
    new.self_attn.layer_idx = 4
    model.model.layers.insert(1, new)
    model.config.num_hidden_layers = 5


def load_state(assign: bool) -> Change:
    def change(model: Any) -> None:
        state = {name: tensor * 1.25 for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)
        model.requires_grad_(False)

    return change


def edit_in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
        model.model.rotary_emb.inv_freq.mul_(0.5)


def another_head(model: Any) -> None:
    model.lm_head = nn.Linear(48, 83, bias=True)


LAYER, ATTENTION = "model.layers.1", "model.layers.1.self_attn"


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def scaled(module: Any) -> Any:
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.mul_(1.25)
    return twin


def eager(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def made(kind: str) -> Any:
    try:
        return tiny_model(kind)
    except KeyError:
        return tiny_of(kind)


class OtherMLP(llama.LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class OtherActivation(SiLUActivation):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5
