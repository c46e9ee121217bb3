"""What a model must be for LazyLLM to run it, checked by name before any work, and later again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks_of_all
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lazyllm_ext.errors import NotSupportedError, refusal

from .families.family import full_attention
from .forwards import OwnForward, foreign_in, function_name, is_of_a_library
from .modules import operator_activation
from .parts import Language, Piece, language_of, parts_of, pieces_of
from .ranks import check_ranks
from .versions import only_sums_gradients

# Rotary embeddings whose frequencies do not depend on the length of the sequence.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_LAYER_TYPES = ("full_attention", "sliding_attention")

# Outputs that a configuration may ask for, for each layer.
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits")

# Modules whose hooks change nothing. transformers leaves its own in place once hidden states were
# asked for; PyTorch's tracker tells a counter of operations which module runs.
_ONLY_LOOK_ON = ("transformers.utils.output_capturing", "torch.utils.module_tracker")


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
    if getattr(language.base, "config", config) is not config:
        raise refusal(f"{language.where}.config", "the model's own configuration", "another one")
    reason = family.refuse(language.base)
    if reason is not None:
        raise NotSupportedError(f"model: {reason}")
    if getattr(config, "is_causal", True) is False:
        raise refusal("model: config.is_causal", True, False)
    _check_layer_types(config)
    _check_hooks(
        "every module",
        [
            *hooks_of_all._global_forward_pre_hooks.values(),
            *hooks_of_all._global_forward_hooks.values(),
        ],
    )
    if language.whole:
        _check_children(model, "model", {family.base, "lm_head"})
    if not getattr(language.base, family.layers_name, True) or config.num_hidden_layers == 0:
        raise refusal(f"{language.where}.{family.layers_name}", "at least one", 0)
    for piece in pieces_of(language):
        _check_piece(piece)
        if piece.children:
            _check_children(piece.module, piece.where, piece.children)
    for kind in classes_of(model, language):
        foreign = foreign_in(kind)
        if foreign is not None:
            raise refusal(f"model: {kind.__name__}.forward", "its library's own", foreign)
    _check_attention(language)
    check_ranks(model, language)
    if family.rotary is not None:
        _check_rope(language.base.rotary_emb)
    return language


def classes_of(model: Any, language: Language) -> set[type[nn.Module]]:
    """The classes whose forwards the decoder computes itself."""
    family = language.family
    kinds: set[Any] = {piece.expected for piece in pieces_of(language)} | {nn.Linear}
    if language.whole:
        kinds.add(type(model))
    for layer in parts_of(language).layers:
        mlp = getattr(layer, family.mlp_name)
        if type(mlp) is family.mlp:
            kinds.add(family.mlp)
            activation = getattr(mlp, "act_fn", None)
            if operator_activation(activation):  # others are called
                kinds.add(type(activation))
    return kinds


def check_outputs(model: Any, language_config: Any, arguments: Mapping[str, Any]) -> None:
    """NotSupportedError for outputs that the configuration asks for, and not the arguments."""
    for name in _OUTPUTS:
        asked = (getattr(config, name, None) for config in (model.config, language_config))
        if arguments.get(name) is None and any(asked):
            raise refusal(
                f"model: config.{name}", "False, since LazyLLM has no such output", "True"
            )


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


def _check_piece(piece: Piece) -> None:
    """NotSupportedError unless the module is one of the family's, running its own forward."""
    where, module, expected = piece.where, piece.module, piece.expected
    if type(module) is not expected:
        raise refusal(where, expected.__name__, type(module).__name__)
    if module.training:
        raise refusal(where, "inference mode", "training mode; call model.eval()")
    if piece.called:
        return
    replaced = module.__dict__.get("forward")
    own = replaced is None or isinstance(replaced, OwnForward) or only_sums_gradients(module)
    if not own:
        raise refusal(where, f"the forward of {expected.__name__}", "a replaced one")
    if getattr(module, "gradient_checkpointing", False):
        raise refusal(where, "no gradient checkpointing", "it enabled")
    _check_hooks(where, [*module._forward_pre_hooks.values(), *module._forward_hooks.values()])


def _check_hooks(where: str, hooks: Sequence[Any]) -> None:
    """NotSupportedError for a hook on a module that is not called, unless it only looks on."""
    for hook in hooks:
        if getattr(hook, "__module__", None) not in _ONLY_LOOK_ON:
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise refusal(
                where, "no forward hook", f"{name}: the module is not called, so it would not run"
            )


def _check_children(module: nn.Module, where: str, expected: Set[str]) -> None:
    got = {name for name, child in module.named_children() if type(child) is not nn.Dropout}
    if got != expected:
        raise refusal(where, f"the modules {', '.join(sorted(expected))}", ", ".join(sorted(got)))


def _check_attention(language: Language) -> None:
    """NotSupportedError for attention other than transformers' own, with the masks of its own."""
    config, family, parts = language.config, language.family, parts_of(language)
    if not isinstance(F.scaled_dot_product_attention, BuiltinFunctionType):
        raise refusal(
            "torch.nn.functional.scaled_dot_product_attention",
            "PyTorch's own",
            function_name(F.scaled_dot_product_attention),
        )
    configs = (config, *(getattr(attention, "config", config) for attention in parts.attentions))
    for name in {getattr(each, "_attn_implementation", None) for each in configs}:
        for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            function = functions.get(name)
            if function is not None and not is_of_a_library(function):
                raise refusal(
                    "model: attention implementation",
                    "one of transformers' own",
                    f"{name!r}, {function_name(function)}",
                )
    kinds = getattr(config, "layer_types", None)
    stored: set[int] = set()
    for number, attention in enumerate(parts.attentions):
        where = f"{language.where}.{family.layers_name}[{number}].{family.attention_name}"
        place = getattr(attention, "layer_idx", number)
        if place in stored:
            raise refusal(
                f"{where}.layer_idx",
                "another one than in the layers before it, since transformers stores keys by it",
                place,
            )
        stored.add(place)
        if not getattr(attention, "is_causal", True):
            raise refusal(f"{where}.is_causal", True, False)
        for flag in ("use_qk_norm", "qk_layernorm"):
            if not getattr(attention, flag, True) and family.attention_norms(attention):
                raise refusal(f"{where}.{flag}", "norms that are used", False)
        if family.window is full_attention:
            continue
        slides = kinds is None or kinds[number] == "sliding_attention"
        masked = (config.sliding_window or 0) if slides else 0
        if family.window(attention) != masked:
            raise refusal(
                f"{where}: sliding window",
                f"{masked}, as config.layer_types and config.sliding_window say",
                family.window(attention),
            )


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
