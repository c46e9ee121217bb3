"""Arguments of the model and of its generate: taken apart, and refused by name before any work."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from inspect import Signature
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode

from lazyllm_ext.errors import NotSupportedError, refusal
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.cache.inputs import check_ids, check_number_of_logits
from lazyllm_ext.hf.cache.padding import check_mask
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
    "output_attentions": "LazyLLM never makes attention maps",
    "output_hidden_states": "layers compute different tokens",
    "output_router_logits": "layers compute different tokens",
}

# What generate consumes itself, and hands on all the same; no model looks at it.
_HANDED_ON = ("tokenizer", "assistant_tokenizer")

# What PEFT's hooks bring to a projection: a value for each row, which must be a sequence.
_PER_ROW = ("adapter_names", "alora_offsets")


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
        self.cache: Any = past if cache is None else cache
        # Both are given in a step of generate by PEFT's prefix tuning.
        self.two_caches = cache is not None and past is not None
        if self.two_caches:
            self.arguments["past_key_values"] = past
        self.schedule: Any = self.arguments.pop("lazy_schedule", None)

    def for_transformers(self) -> dict[str, Any]:
        """All arguments of transformers' function; a cache of LazyLLM's is of no use to it."""
        if self.cache is None or isinstance(self.cache, LazyCache):
            return self.arguments
        return {**self.arguments, CACHE_NAME: self.cache}


def check_forward_arguments(arguments: Mapping[str, Any], signature: Signature) -> None:
    """Raises NotSupportedError for an argument of forward that LazyLLM cannot serve.

    The inputs themselves are checked against the cache: `cache.inputs.pack_inputs`.

    Args:
        signature: of the model's own forward.
    """
    for name, reason in _NEVER.items():
        if _asks(arguments.get(name)):
            raise NotSupportedError(f"{name}: not supported: {reason}")
    if arguments.get("labels") is not None:
        raise NotSupportedError("labels: not supported: LazyLLM drops tokens, so there is no loss")
    types = arguments.get("token_type_ids")
    if types is not None and "token_type_ids" in signature.parameters:
        raise refusal("token_type_ids", "none, since this model adds an embedding of each", "some")
    if types is not None and not (isinstance(types, Tensor) and not types.any()):
        raise refusal("token_type_ids", "text only (zeros)", "other types")
    if arguments.get("is_causal", True) is not True:
        raise refusal("is_causal", "True", arguments["is_causal"])
    embeds = arguments.get("inputs_embeds")
    if isinstance(embeds, Tensor) and embeds.requires_grad and torch.is_grad_enabled():
        raise refusal(
            "inputs_embeds",
            "no gradient to be asked for",
            "requires_grad; LazyLLM is for inference only",
        )


def check_forward_names(arguments: Mapping[str, Any]) -> None:
    """Raises NotSupportedError for a keyword of forward that would have no effect.

    Not for a model that sees images: it takes others itself.
    """
    known = (*_SERVED, *_NEVER, *_HANDED_ON, "is_causal", "token_type_ids")
    for name, value in arguments.items():
        if value is not None and name not in known:
            raise NotSupportedError(f"{name}: not supported; expected {', '.join(_SERVED)}")


def check_packing(call: Call, config: Any) -> None:
    """Raises NotSupportedError for positions that tell transformers of several sequences in a row.

    It looks at them where there is neither a cache nor a mask.

    Args:
        config: the language model's.
    """
    positions = call.arguments.get("position_ids")
    if not isinstance(positions, Tensor) or call.cache is not None:
        return
    has_mask = call.arguments.get("attention_mask") is not None
    if has_mask or call.arguments.get("use_cache", config.use_cache):
        return
    if bool((positions.diff(dim=-1) != 1).any()):
        raise refusal(
            "position_ids",
            "each one more than the one before it, since without a cache transformers takes others "
            "for sequences packed in one row",
            "others",
        )


def check_adapters(model: Any) -> None:
    """Raises NotSupportedError for what PEFT does in a call beside the adapters' own modules.

    An adapter for each sequence of the batch: a row of what the decoder projects is a token. Keys
    and values in front of the prompt's. A walk over the model, made where a cache begins.
    """
    if "peft" not in sys.modules:
        return
    of_peft = getattr(model.__dict__.get("prepare_inputs_for_generation"), "__self__", None)
    kind = getattr(getattr(of_peft, "active_peft_config", None), "peft_type", None)
    if kind in ("PREFIX_TUNING", "CARTRIDGE"):
        raise NotSupportedError(
            f"model: PEFT's {kind.value} is not supported: its keys and values belong to no token"
        )
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            brought = getattr(hook, "keywords", {})  # of a functools.partial
            for name in _PER_ROW:
                if name in brought:
                    raise NotSupportedError(
                        f"{name}: not supported; call once for each adapter, after set_adapter"
                    )


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
            or too few columns for the cache, a mask of something else than tokens.
        ValueError: no tokens, or a mask or tokens that contradict the cache.
    """
    if "return_dict" in arguments:
        raise ValueError(
            "return_dict: expected no such argument of generate, but return_dict_in_generate, got "
            f"{arguments['return_dict']}"
        )
    for name in ("custom_generate", "negative_prompt_ids"):
        if arguments.get(name) is not None:
            raise NotSupportedError(f"{name}: not supported; {_SUPPORTED_MODES}")
    if arguments.get("logits_to_keep") is not None:
        check_number_of_logits(arguments["logits_to_keep"])
    _check_generate_inputs(arguments, cache.columns)
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


def _check_generate_inputs(arguments: Mapping[str, Any], before: int) -> None:
    """Tokens and mask, whatever else is asked; `before` columns are in the cache."""
    embeds, mask = arguments.get("inputs_embeds"), arguments.get("attention_mask")
    name, given = "inputs_embeds", embeds
    for of_ids in ("inputs", "input_ids"):
        ids = arguments.get(of_ids)
        if ids is None:
            continue
        check_ids(of_ids, ids)
        if embeds is None:
            name, given = of_ids, ids
            if ids.numel() == 0:
                raise ValueError(
                    f"{of_ids}: expected at least one token, got shape {list(ids.shape)}"
                )
    if mask is None:
        return
    check_mask(mask)
    if not isinstance(given, Tensor) or given.dim() < 2:
        return
    rows, columns = given.shape[:2]
    if mask.size(0) not in (1, rows):  # one stands for all if it holds ones only
        raise ValueError(
            f"attention_mask: expected {rows} rows, as {name} has, got shape {list(mask.shape)}"
        )
    if before == 0 and mask.size(1) != columns:
        raise refusal(
            "attention_mask", f"{columns} columns, as {name} has", f"shape {list(mask.shape)}"
        )


def check_generation(mode: GenerationMode, config: GenerationConfig) -> None:
    """Raises NotSupportedError for a generation mode or option that LazyLLM does not support."""
    if mode not in _MODES:
        raise NotSupportedError(f"generate: {mode.value} is not supported; {_SUPPORTED_MODES}")
    options = {
        "cache_implementation": config.cache_implementation not in (None, "dynamic"),
        "use_cache": config.use_cache not in (None, True),
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
