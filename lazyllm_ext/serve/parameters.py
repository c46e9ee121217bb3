"""A request's JSON -> what is asked, or the name of the parameter that is wrong."""

from __future__ import annotations

import json
from dataclasses import field, fields, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from lazyllm_ext.json_input import Expects, InputError, checked, decode, read_object

from .engine import Sampling
from .errors import ApiError, check_model, expected

_MOST_STOPS = 4  # as OpenAI has it

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


def _stops(given: Any) -> tuple[str, ...]:
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
            raise _unsupported(f"{name}.{key}")
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


def _include_usage(options: Any) -> bool:
    if not isinstance(options, dict):
        raise expected("stream_options", "an object", options)
    given = {name: value for name, value in options.items() if value is not None}
    given.pop("include_obfuscation", None)  # padding against eavesdroppers, which changes no text
    include = given.pop("include_usage", False)
    for name in given:
        raise _unsupported(f"stream_options.{name}")
    if not isinstance(include, bool):
        raise expected("stream_options.include_usage", "true or false", include)
    return include


def _unsupported(name: str) -> ApiError:
    name = ascii(name)[1:-1]  # it goes into responses and logs
    return ApiError(f"{name}: not supported", name, code="unsupported_parameter")


def _whole(given: Any) -> Any:
    """12.0, as some clients write it, is 12: JSON knows one kind of number."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


_MOST_TOKENS = 2**31
Limit = Annotated[
    int | None,
    Field(ge=1, le=_MOST_TOKENS),
    BeforeValidator(_whole),
    Expects(f"a whole number from 1 to {_MOST_TOKENS}"),
]


@checked(extra="ignore")
class Parameters:
    """A request, checked: what both routes take, under OpenAI's names.

    `stream_options` is whether they ask for usage; `stop` is a tuple.
    """

    model: Annotated[str, Expects("the name of the model that is served")]
    stream: Annotated[bool, Expects("true or false")] = False
    stream_options: Annotated[bool | None, PlainValidator(_include_usage)] = None
    max_tokens: Limit = None
    temperature: Annotated[float, Field(ge=0, le=2), Expects("a number from 0 to 2")] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1), Expects("a number from 0 to 1")] = 1.0
    seed: Annotated[
        int | None,
        Field(ge=-(2**63), le=2**63 - 1),
        BeforeValidator(_whole),
        Expects(f"a whole number from {-(2**63)} to {2**63 - 1}"),
    ] = None
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise InputError("stream_options", "expected stream=true with it, got false")

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, and when it ends."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed, self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a piece that has `usage`."""
        return bool(self.stream_options)


@checked(extra="ignore")
class CompletionParameters(Parameters):
    """A request to /v1/completions; `prompt` is text, or its tokens."""

    prompt: Annotated[str | list[int], PlainValidator(_prompt)] = field(kw_only=True)
    max_tokens: Limit = 16  # as OpenAI has it


@checked(extra="ignore")
class ChatParameters(Parameters):
    """A request to /v1/chat/completions; messages have `role` and `content`."""

    messages: Annotated[list[dict[str, str]], PlainValidator(_messages)] = field(kw_only=True)
    max_completion_tokens: Limit = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            said = "expected one of max_tokens and max_completion_tokens, got both"
            raise InputError("max_tokens", said)

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The messages."""
        return self.messages

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, and when it ends."""
        return replace(super().sampling, max_tokens=self.max_completion_tokens or self.max_tokens)


def read_parameters(
    body: bytes, *, chat: bool, model: str
) -> ChatParameters | CompletionParameters:
    """Check everything that can be checked without the model.

    Args:
        body: the request's JSON.
        chat: of /v1/chat/completions, else of /v1/completions.
        model: the name of the model that is served.

    Raises:
        ApiError: for the first parameter that is wrong.
    """
    try:
        data = decode(body, "body")
        if not isinstance(data, dict):
            raise InputError("body", f"expected a JSON object, got {type(data).__name__}")
    except InputError as error:
        raise ApiError(str(error), code="invalid_json") from None
    given = {name: value for name, value in data.items() if value is not None}
    given.setdefault("messages" if chat else "prompt", None)
    kind: type[Any] = ChatParameters if chat else CompletionParameters
    try:
        parameters: ChatParameters | CompletionParameters = read_object(kind, given, "")
    except InputError as error:
        raise ApiError(str(error), error.field, code="invalid_value") from None
    check_model(parameters.model, model)
    known = [own.name for own in fields(kind)]
    for name, value in given.items():
        if name not in known:
            _refuse(name, value)
    return parameters


def _refuse(name: str, value: Any) -> None:
    """Raises ApiError for a parameter that would change the answer and is not supported."""
    if name in _IGNORED:
        return
    if name not in _ASKS_NOTHING:
        raise _unsupported(name)
    for nothing in _ASKS_NOTHING[name]:
        # False is no 0 here: completions with logprobs=0 ask for those of the chosen tokens.
        if value == nothing and isinstance(value, bool) == isinstance(nothing, bool):
            return
    shown = " or ".join(json.dumps(nothing) for nothing in _ASKS_NOTHING[name])
    raise expected(name, f"{shown}: more is not supported", value, "unsupported_parameter")
