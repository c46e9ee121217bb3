"""Arguments and generation modes that are refused by name, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode

from lazyllm_ext.errors import NotSupportedError

from .versions import CACHE_NAME, OPTIONS_OF_SOME

_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)
_SUPPORTED_MODES = (
    "lazyllm_ext supports greedy search, sampling, beams, and drafts of an assistant or of prompt "
    "lookup, with the cache it makes itself"
)

# Each makes so many sequences of one.
_SEVERAL = ("num_beams", "num_return_sequences")

_SERVED = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    CACHE_NAME,
    "use_cache",
    "logits_to_keep",
    "return_dict",
)

# Arguments of forward that may be given as long as they ask for nothing.
_NEVER = {
    "labels": "LazyLLM drops tokens, so there is no loss",
    "output_attentions": "LazyLLM never makes attention maps",
    "output_hidden_states": "layers compute different tokens",
}


def refuse_forward_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises NotSupportedError for an argument of forward that LazyLLM cannot serve."""
    for name, reason in _NEVER.items():
        value = arguments.get(name)
        if value is not None and value is not False:
            raise NotSupportedError(f"{name}: not supported: {reason}")
    types = arguments.get("token_type_ids")
    if types is not None and bool((types != 0).any()):
        raise NotSupportedError("token_type_ids: expected text only (zeros), got other types")
    embeds = arguments.get("inputs_embeds")
    if embeds is not None and embeds.requires_grad and torch.is_grad_enabled():
        raise NotSupportedError(
            "inputs_embeds: expected no gradient to be asked for, got requires_grad; LazyLLM is "
            "for inference only"
        )


def refuse_unknown_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises NotSupportedError for a keyword of forward that would have no effect."""
    for name, value in arguments.items():
        served = name in _SERVED or name in _NEVER or name == "token_type_ids"
        if not served and value is not None and value is not False:
            raise NotSupportedError(f"{name}: not supported; expected {', '.join(_SERVED)}")


def refuse_generate_arguments(arguments: Mapping[str, Any]) -> None:
    """NotSupportedError for an argument of generate that leads away from its own sampling loop."""
    for name in ("custom_generate", "negative_prompt_ids"):
        if arguments.get(name) is not None:
            raise NotSupportedError(f"{name}: not supported; {_SUPPORTED_MODES}")
    assistant = arguments.get("assistant_model")
    if "generate" in getattr(assistant, "__dict__", {}):
        raise NotSupportedError(
            "assistant_model: expected a model of its own without LazyLLM, got one with a generate "
            "that was replaced"
        )
    if arguments.get("cache_implementation") == "paged":
        raise NotSupportedError(f"cache_implementation='paged': not supported; {_SUPPORTED_MODES}")


def refuse_generation(mode: GenerationMode, config: GenerationConfig) -> None:
    """Raises NotSupportedError for a generation mode or option that LazyLLM does not support."""
    if mode not in _MODES:
        raise NotSupportedError(f"generate: {mode.value} is not supported; {_SUPPORTED_MODES}")
    options = {
        "cache_implementation": config.cache_implementation not in (None, "dynamic"),
        "use_cache": config.use_cache is False,
        "guidance_scale": config.guidance_scale not in (None, 1),
        "token_healing": bool(config.token_healing),
        "is_assistant": bool(config.is_assistant),
        # Drafts by parts of the model itself, which LazyLLM does not run.
        "assistant_early_exit": config.assistant_early_exit is not None,
        **{name: getattr(config, name, None) not in (None, False) for name in OPTIONS_OF_SOME},
    }
    for name, refused in options.items():
        if refused:
            value = getattr(config, name)
            raise NotSupportedError(
                f"generate: {name}={value!r} is not supported; {_SUPPORTED_MODES}"
            )


def refuse_turn(
    arguments: Mapping[str, Any], config: Any, columns: int, document: Tensor | None
) -> None:
    """Refuse inputs that do not go on from a cache. New tokens alone, with the mask of all, do.

    Args:
        config: the model's own for generation.
        columns: that the cache holds.
        document: see `LazyCache.document`, of the inputs' sequences or of their beams.

    Raises:
        NotSupportedError: no more columns than that; transformers would cut them at a wrong place.
        ValueError: other tokens than the document's: its keys and values would stand for words
            that they do not belong to; or a mask of other columns than these inputs, alone or with
            the cache's, which would lead to other positions.
    """
    mask = arguments.get("attention_mask")
    for name in ("inputs", "input_ids", "inputs_embeds"):
        given = arguments.get(name)
        if not isinstance(given, Tensor) or given.dim() < 2:
            continue
        ids = name != "inputs_embeds"
        if ids and mask is not None and mask.shape[-1:] != given.shape[1:2]:
            whole = columns + given.size(1)
            if mask.shape[-1:] != (whole,):
                raise ValueError(
                    f"attention_mask: expected {given.size(1)} columns, as {name} has, or {whole}, "
                    f"with those that {CACHE_NAME} holds, got shape {list(mask.shape)}"
                )
            continue
        if given.size(1) <= columns:
            raise NotSupportedError(
                f"{name}: expected the whole conversation, longer than the {columns} columns that "
                f"{CACHE_NAME} holds, got {given.size(1)} columns"
            )
        if ids and document is not None:
            times = max(_asked(arguments, config, way) for way in _SEVERAL)
            _refuse_other_document(name, given.repeat_interleave(times, dim=0), document)


def _refuse_other_document(name: str, given: Tensor, document: Tensor) -> None:
    columns = document.size(1)
    begins = given[:, :columns]
    if begins.shape != document.shape:
        return  # another number of sequences: what is refused then says so
    other = ((document >= 0) & (begins != document.to(given.device)).to(document.device)).nonzero()
    if other.numel():
        sequence, column = other[0].tolist()
        raise ValueError(
            f"{name}: expected to begin with the {columns} tokens of the document that "
            f"{CACHE_NAME} holds, got {int(begins[sequence, column])} instead of "
            f"{int(document[sequence, column])} in column {column}"
        )


def _asked(arguments: Mapping[str, Any], config: Any, option: str) -> int:
    """A number that a call of generate asks for, or a configuration does; 1 where none does."""
    given = arguments.get("generation_config")
    asked = (arguments.get(option), getattr(given, option, None), getattr(config, option, None))
    return next((number for number in asked if number), 1)


def refuse_drafts_of_turn(arguments: Mapping[str, Any], config: Any, columns: int) -> None:
    """Raises NotSupportedError for drafts that would go on from a cache of so many columns.

    transformers feeds the whole conversation to the first draft's check, the cached part as well.
    """
    configs = (arguments.get("generation_config"), config)
    lookup = arguments.get("prompt_lookup_num_tokens") or any(
        getattr(one, "prompt_lookup_num_tokens", None) for one in configs
    )
    for name, given in (
        ("assistant_model", arguments.get("assistant_model")),
        ("prompt_lookup_num_tokens", lookup),
    ):
        if given:
            raise NotSupportedError(
                f"{name}: drafts do not go on from a cache: transformers would read its {columns} "
                f"columns again; leave out {name} or {CACHE_NAME}"
            )


def refuse_context(name: str, given: Tensor, device: torch.device) -> None:
    """Raises ValueError for an input on another device, NotSupportedError under autocast."""
    if given.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {given.device}")
    if torch.is_autocast_enabled(device.type):
        raise NotSupportedError(
            "torch.autocast: not supported; load the model in the dtype it shall compute in"
        )
