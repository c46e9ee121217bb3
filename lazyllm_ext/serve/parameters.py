"""A request's JSON -> what is asked, or the name of the parameter that is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .engine import Sampling
from .errors import ApiError, expected

_MOST_STOPS = 4  # as OpenAI has it
_COMPLETION_TOKENS = 16  # where a completion names no max_tokens, as OpenAI has it

# Parameters that change no answer.
_IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Parameters that are not supported, with the values that ask for nothing. All others but null are
# refused, and so is a parameter that is not known at all.
_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Parameters:
    """A request, checked.

    Attributes:
        prompt: text, tokens, or the messages of a chat with `role` and `content`.
        sampling: how tokens are chosen, and when it ends.
        stream: send pieces as they come.
        include_usage: a last piece with `usage`.
    """

    prompt: str | list[int] | list[dict[str, str]]
    sampling: Sampling
    stream: bool
    include_usage: bool


def read_parameters(body: bytes, *, chat: bool, model: str) -> Parameters:
    """Check everything that can be checked without the model.

    Args:
        body: the request's JSON.
        chat: of /v1/chat/completions, else of /v1/completions.
        model: the name of the model that is served.

    Raises:
        ApiError: for the first parameter that is wrong.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"body: expected JSON, got: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(
            f"body: expected a JSON object, got {type(data).__name__}", code="invalid_json"
        )
    fields = {name: value for name, value in data.items() if value is not None}
    _check_model(fields.pop("model", None), model)
    stream = _flag(fields, "stream")
    include_usage = _stream_options(fields, stream)
    if chat:
        prompt: Any = _messages(fields.pop("messages", None))
    else:
        prompt = _prompt(fields.pop("prompt", None))
    sampling = Sampling(
        max_tokens=_max_tokens(fields, chat),
        temperature=_number(fields, "temperature", 1.0, 2.0),
        top_p=_number(fields, "top_p", 1.0, 1.0),
        seed=_whole(fields, "seed", -(2**63), 2**63 - 1),
        stop=_stops(fields.pop("stop", None)),
    )
    for name, value in fields.items():
        _refuse(name, value)
    return Parameters(prompt, sampling, stream, include_usage)


def _check_model(asked: Any, served: str) -> None:
    if not isinstance(asked, str):
        raise expected("model", f"the name of the model that is served, {served!r}", asked)
    if asked != served:
        raise ApiError(
            f"model: expected {served!r}, the one that is served, got {asked!r}",
            "model",
            status=404,
            code="model_not_found",
        )


def _refuse(name: str, value: Any) -> None:
    """Raises ApiError for a parameter that would change the answer and is not supported."""
    if name in _IGNORED:
        return
    if name not in _ASKS_NOTHING:
        name = ascii(name)[1:-1]  # it goes into responses and logs
        raise ApiError(f"{name}: not supported", name, code="unsupported_parameter")
    for nothing in _ASKS_NOTHING[name]:
        # False is no 0 here: completions with logprobs=0 ask for those of the chosen tokens.
        if value == nothing and isinstance(value, bool) == isinstance(nothing, bool):
            return
    shown = " or ".join(json.dumps(nothing) for nothing in _ASKS_NOTHING[name])
    raise expected(name, f"{shown}: more is not supported", value, "unsupported_parameter")


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise expected(name, "true or false", value)
    return value


def _number(fields: dict[str, Any], name: str, default: float, most: float) -> float:
    value = fields.pop(name, default)
    # not (…): so that NaN, which Python's JSON knows, is refused as well
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value <= most):
        raise expected(name, f"a number from 0 to {most:g}", value)
    return float(value)


def _whole(fields: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.pop(name, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bounds = f"of at least {least}" if least == 1 else f"from {least} to {most}"
        raise expected(name, f"a whole number {bounds}", value)
    return value


def _max_tokens(fields: dict[str, Any], chat: bool) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    given = [name for name in names if name in fields]
    if len(given) > 1:
        raise ApiError(
            "max_tokens: expected one of max_tokens and max_completion_tokens, got both",
            "max_tokens",
            code="invalid_value",
        )
    if given:
        return _whole(fields, given[0], 1, 2**31)
    return None if chat else _COMPLETION_TOKENS


def _stream_options(fields: dict[str, Any], stream: bool) -> bool:
    options = fields.pop("stream_options", None)
    if options is None:
        return False
    if not stream:
        raise ApiError(
            "stream_options: expected stream=true with it, got false",
            "stream_options",
            code="invalid_value",
        )
    if not isinstance(options, dict):
        raise expected("stream_options", "an object", options)
    options = {name: value for name, value in options.items() if value is not None}
    include_usage = _flag(options, "include_usage")
    options.pop("include_obfuscation", None)  # padding against eavesdroppers, which changes no text
    for name in map(ascii, options):
        name = name[1:-1]
        raise ApiError(f"stream_options.{name}: not supported", f"stream_options.{name}")
    return include_usage


def _stops(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    stops = [given] if isinstance(given, str) else given
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise expected("stop", f"a string, or up to {_MOST_STOPS} in a list, none empty", given)
    return tuple(_text("stop", stop) for stop in stops)


def _prompt(given: Any) -> str | list[int]:
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], (str, list)):
        given = given[0]  # a batch of one
    if isinstance(given, str):
        return _text("prompt", given)
    tokens = isinstance(given, list) and all(type(token) is int for token in given)
    if not tokens or not given:
        raise expected("prompt", "one text, or its tokens in a list", given)
    return list(given)


def _messages(given: Any) -> list[dict[str, str]]:
    if not isinstance(given, list) or not given:
        raise expected("messages", "a list of at least one message", given)
    return [_message(f"messages[{place}]", message) for place, message in enumerate(given)]


def _message(name: str, given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        raise expected(name, "an object with role and content", given)
    role = given.get("role")
    if role not in _ROLES:
        raise expected(f"{name}.role", f"one of {', '.join(_ROLES)}", role)
    for key in ("tool_calls", "function_call", "audio"):
        if given.get(key):
            raise ApiError(
                f"{name}.{key}: not supported", f"{name}.{key}", code="unsupported_parameter"
            )
    # Templates know OpenAI's newer name of the same role rarely.
    role = "system" if role == "developer" else role
    return {"role": role, "content": _content(f"{name}.content", given.get("content"))}


def _content(name: str, given: Any) -> str:
    """Text, or the texts of a list of parts, one after the other."""
    if isinstance(given, str):
        return _text(name, given)
    if not isinstance(given, list) or not given:
        raise expected(name, "text, or a list of parts of type 'text'", given)
    texts = []
    for place, part in enumerate(given):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise expected(f"{name}[{place}]", "a part of type 'text' with its text", part)
        texts.append(_text(name, text))
    return "".join(texts)


def _text(name: str, text: str) -> str:
    """Raises ApiError for half of a surrogate pair, which JSON may hold and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ApiError(f"{name}: expected text, got half of a surrogate pair", name) from None
    return text
