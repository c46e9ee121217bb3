"""Arguments of the model and of its generate: taken apart, and refused by name before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import Signature
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode

from lazyllm_ext.errors import NotSupportedError, refusal
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME, OPTIONS_OF_SOME

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


def by_name(signature: Signature, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a function with this signature, all of them by name."""
    arguments = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:  # not the same name in every model
            arguments.update(arguments.pop(name, {}))
    return arguments


def without_nones(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What is given: to forward, an argument that is None is one that is left out."""
    return {name: value for name, value in arguments.items() if value is not None}


class Call:
    """A call of the model or of its generate: its cache, its schedule, and the arguments left."""

    def __init__(self, arguments: Mapping[str, Any]):
        self.arguments = dict(arguments)  # by name; the cache is left out, by either of its names
        cache, past = (self.arguments.pop(name, None) for name in ("cache", "past_key_values"))
        if cache is not None and past is not None:
            raise ValueError("cache: expected one of cache and past_key_values, got both")
        self.cache: Any = past if cache is None else cache
        self.schedule: Any = self.arguments.pop("lazy_schedule", None)

    def for_transformers(self) -> dict[str, Any]:
        """All arguments of transformers' function; a cache of LazyLLM's is of no use to it."""
        if self.cache is None or isinstance(self.cache, LazyCache):
            return self.arguments
        return {**self.arguments, CACHE_NAME: self.cache}


def check_forward_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises NotSupportedError for an argument of forward that LazyLLM cannot serve.

    The inputs themselves are checked against the cache: `cache.inputs.pack_inputs`.
    """
    for name, reason in _NEVER.items():
        if _asks(arguments.get(name)):
            raise NotSupportedError(f"{name}: not supported: {reason}")
    types = arguments.get("token_type_ids")
    if types is not None and bool((types != 0).any()):
        raise refusal("token_type_ids", "text only (zeros)", "other types")
    embeds = arguments.get("inputs_embeds")
    if embeds is not None and embeds.requires_grad and torch.is_grad_enabled():
        raise refusal(
            "inputs_embeds",
            "no gradient to be asked for",
            "requires_grad; LazyLLM is for inference only",
        )


def check_forward_names(arguments: Mapping[str, Any]) -> None:
    """Raises NotSupportedError for a keyword of forward that would have no effect.

    Not for a model that sees images: it takes others itself.
    """
    for name, value in arguments.items():
        known = name in _SERVED or name in _NEVER or name == "token_type_ids"
        if not known and _asks(value):
            raise NotSupportedError(f"{name}: not supported; expected {', '.join(_SERVED)}")


def _asks(value: Any) -> bool:
    return value is not None and value is not False


def check_generate_arguments(
    arguments: Mapping[str, Any], config: GenerationConfig, cache: LazyCache
) -> None:
    """Raises an error for arguments of generate that LazyLLM, or this cache, cannot serve.

    What only shows once generate has read all its options, `check_generation` looks at.

    Args:
        config: the model's own for generation.
        cache: that the generation goes on from, or a new one.

    Raises:
        NotSupportedError: an argument that leads away from generate's own sampling loop, drafts
            or too few columns for the cache.
        ValueError: a mask or tokens that contradict it.
    """
    for name in ("custom_generate", "negative_prompt_ids"):
        if arguments.get(name) is not None:
            raise NotSupportedError(f"{name}: not supported; {_SUPPORTED_MODES}")
    assistant = arguments.get("assistant_model")
    if "generate" in getattr(assistant, "__dict__", {}):
        raise refusal(
            "assistant_model",
            "a model of its own without LazyLLM",
            "one with a generate that was replaced",
        )
    if arguments.get("cache_implementation") == "paged":
        raise NotSupportedError(f"cache_implementation='paged': not supported; {_SUPPORTED_MODES}")
    if cache.columns:
        _check_turn(arguments, config, cache)
        _refuse_drafts(arguments, config, cache.columns)


def check_generation(mode: GenerationMode, config: GenerationConfig) -> None:
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
        **{name: _asks(getattr(config, name, None)) for name in OPTIONS_OF_SOME},
    }
    for name, refused in options.items():
        if refused:
            value = getattr(config, name)
            raise NotSupportedError(
                f"generate: {name}={value!r} is not supported; {_SUPPORTED_MODES}"
            )


def _check_turn(arguments: Mapping[str, Any], config: GenerationConfig, cache: LazyCache) -> None:
    """Refuse inputs that do not go on from a cache. New tokens alone, with the mask of all, do.

    Raises:
        NotSupportedError: no more columns than the cache has; transformers would cut them wrongly.
        ValueError: other tokens than the document's: its keys and values would stand for words
            that they do not belong to; or a mask of other columns than these inputs, alone or with
            the cache's, which would lead to other positions.
    """
    mask, columns = arguments.get("attention_mask"), cache.columns
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
            raise refusal(
                name,
                f"the whole conversation, longer than the {columns} columns that {CACHE_NAME} "
                "holds",
                f"{given.size(1)} columns",
            )
        if ids and cache.document is not None:
            times = max(_asked(arguments, config, way) or 1 for way in _SEVERAL)
            _check_document(name, given.repeat_interleave(times, dim=0), cache.document)


def _check_document(name: str, given: Tensor, document: Tensor) -> None:
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


def _asked(arguments: Mapping[str, Any], config: GenerationConfig, option: str) -> Any:
    """What a call of generate or, else, a configuration asks for."""
    given = arguments.get("generation_config")
    return arguments.get(option) or getattr(given, option, None) or getattr(config, option, None)


def _refuse_drafts(arguments: Mapping[str, Any], config: GenerationConfig, columns: int) -> None:
    """Raises NotSupportedError for drafts that would go on from a cache of so many columns.

    transformers feeds the whole conversation to the first draft's check, the cached part as well.
    """
    drafts = {
        "assistant_model": arguments.get("assistant_model"),
        "prompt_lookup_num_tokens": _asked(arguments, config, "prompt_lookup_num_tokens"),
    }
    for name, asked in drafts.items():
        if asked:
            raise NotSupportedError(
                f"{name}: drafts do not go on from a cache: transformers would read its {columns} "
                f"columns again; leave out {name} or {CACHE_NAME}"
            )
