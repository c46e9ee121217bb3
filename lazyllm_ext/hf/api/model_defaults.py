"""What a model's own files ask of a generation, where a program and not the user calls generate."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.json_input import shown

from .arguments import check_generation

_FILE = "the model's generation configuration"

# Who answers a prompt has its own length and its own sampling, with or without the file.
_GIVEN = ("do_sample", "temperature", "max_length", "max_new_tokens")
_SAMPLING = ("top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# What is no processor of logits, which would check its own values.
_NUMBERS = ("min_length", "min_new_tokens", "max_time", *_SAMPLING)
# Below it sampling takes the likeliest token, and dividing by it would leave the range of numbers.
_LEAST_TEMPERATURE = 1e-4
# The tokens that end and pad an answer: honoured by all.
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")

# What belongs to the caller of generate: one answer, token by token, over a cache of LazyLLM's.
_OWNED = (
    *("num_beams", "num_beam_groups", "num_return_sequences"),
    *("early_stopping", "length_penalty", "diversity_penalty"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "use_mtp"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
    *("speculation_type", "is_assistant"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "compile_config", "disable_compile", "prefill_chunk_size"),
    "continuous_batching_config",
)
# Of config.json, which every call of the model reads: the values that ask for nothing.
_OF_FORWARD: Mapping[str, Any] = {
    "use_cache": True,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
}


@dataclass(frozen=True)
class ModelDefaults:
    """What came of the model's own settings; all others are honoured by `model.generate`."""

    stop_strings: tuple[str, ...]  # to be honoured by the caller, who has the tokenizer
    overridden: Mapping[str, Any]  # what was asked for and has no effect, by name

    def sentence(self) -> str | None:
        """For the user; None where everything has its effect."""
        told = ", ".join(f"{name}={shown(value)}" for name, value in self.overridden.items())
        return f"without effect, though the model's own files ask for it: {told}" if told else None


def sampling_of(temperature: float) -> dict[str, Any]:
    """What `generate` takes for a temperature; one of 0, or next to it, is greedy search."""
    if temperature < _LEAST_TEMPERATURE:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature}


def settle_defaults(
    model: Any, *, greedy: bool = False, own_sampling: bool = True
) -> ModelDefaults:
    """Make a loaded model's own settings what its caller can do, or refuse them by name.

    For programs that load a model themselves: it changes `model.generation_config` and, where they
    ask for something, five fields of `model.config`. Call it before `apply`.

    Honoured: the tokens that end an answer, the least lengths, `max_time`, and all that changes
    logits (`repetition_penalty`, `suppress_tokens`, …; `top_k` and its like in sampling).
    Overridden: length and sampling, which the caller gives; and what it owns: the number of
    sequences and beams, drafts, the cache, what generate returns. Refused: what would choose other
    tokens and LazyLLM does not run (`guidance_scale`, constraints, contrastive search, …).

    Args:
        model: a transformers model without LazyLLM.
        greedy: the caller takes the likeliest token itself, without generate's own loop, or wants
            no other: nothing is honoured but the tokens that end an answer, nothing is refused.
        own_sampling: `top_k` and its like are honoured in sampling; False where they are the
            caller's, as those of a server's requests.

    Returns:
        What the caller has to honour, and what has no effect.

    Raises:
        NotSupportedError: something that would change the answer and is not supported.
        ValueError: a value that generate itself cannot use.
    """
    own, plain = model.generation_config, _plain()
    if own is None:
        own = GenerationConfig()
    asked = {name: getattr(own, name, None) for name in plain}
    asked = {name: value for name, value in asked.items() if _asks(value, plain[name])}
    settled = copy.deepcopy(own)
    unused = [*_OWNED, "stop_strings"]
    if greedy:
        unused = [name for name in plain if name not in _TOKENS]
    for name in unused:
        if hasattr(settled, name):
            setattr(settled, name, None)
    stops = _stop_strings(asked.pop("stop_strings", None)) if not greedy else ()
    _check(model, settled)
    for name in () if own_sampling else _SAMPLING:
        setattr(settled, name, None)
    model.generation_config = settled
    told = {
        name: value
        for name, value in asked.items()
        if name in unused and name not in (*_GIVEN, *_SAMPLING)
    }
    return ModelDefaults(stops, {**told, **_settle_forward(model.config)})


def _plain() -> dict[str, Any]:
    """Every option of a generation, with the value that asks for nothing."""
    public = {name: value for name, value in vars(GenerationConfig()).items() if name[0] != "_"}
    public.pop("transformers_version", None)
    defaults: dict[str, Any] = getattr(GenerationConfig, "_get_default_generation_params", dict)()
    return {**public, **defaults}


def _asks(value: Any, nothing: Any) -> bool:
    """Whether an option's value differs from none, and from the one that asks for nothing."""
    return value is not None and value != nothing and not (value is False and nothing is None)


def _settle_forward(config: Any) -> dict[str, Any]:
    """Undo in config.json what changes the form of an output; what that was."""
    undone: dict[str, Any] = {}
    for part in (config, config.get_text_config()):
        for name, nothing in _OF_FORWARD.items():
            value = getattr(part, name, nothing)
            if _asks(value, nothing):
                undone.setdefault(name, value)
                setattr(part, name, nothing)
    return undone


def _stop_strings(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError(f"{_FILE}: stop_strings: expected texts, got {shown(given)}")
    return tuple(stops)


def _check(model: Any, config: GenerationConfig) -> None:
    """Raises an error for what generate would refuse in every call, or what LazyLLM refuses."""
    for name in _NUMBERS:
        value = getattr(config, name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{_FILE}: {name}: expected a number, got {shown(value)}")
    for name in _TOKENS:
        value = getattr(config, name, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int for token in ids):
            raise ValueError(f"{_FILE}: {name}: expected token ids, got {shown(value)}")
    asked = copy.deepcopy(config)
    for sampling in (False, True):
        asked.do_sample = sampling
        try:
            check_generation(asked.get_generation_mode(), asked)
        except NotSupportedError as refusal:
            raise NotSupportedError(f"{_FILE}: {refusal}") from None
    asked.temperature, asked.max_length = 1.0, 2  # the caller gives them
    prompt = torch.zeros(1, 1, dtype=torch.int64)
    try:  # what changes logits checks its values itself, when it is made or used
        model._prepare_special_tokens(asked, True, device="cpu")
        change = model._get_logits_processor(
            asked, input_ids_seq_length=1, encoder_input_ids=prompt, device="cpu"
        )
        change(prompt, torch.zeros(1, model.get_input_embeddings().num_embeddings))
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{_FILE}: expected what generate takes, got: {said}") from error
