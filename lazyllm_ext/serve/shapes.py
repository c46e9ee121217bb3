"""Answers as OpenAI's objects: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from .engine import Completion


class Shape:
    """The JSON objects of one response.

    Every response has, beside OpenAI's fields, an object `lazyllm` with what was computed; in a
    stream it is in the last chunk. With `include_usage` a stream has `usage` in a chunk of its own.
    """

    def __init__(self, chat: bool, model: str, include_usage: bool = False):
        self._chat, self._include_usage = chat, include_usage
        self._common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answer: Completion) -> dict[str, Any]:
        """The response that is not streamed."""
        if self._chat:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": answer.text}}
        else:
            said = {"text": answer.text}
        return {
            **self._common,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [_choice(said, answer.finish_reason)],
            "usage": _usage(answer),
            "lazyllm": _lazyllm(answer),
        }

    def first(self) -> list[dict[str, Any]]:
        """Chunks before any text: who speaks, in a chat."""
        return [self._chunk({"role": "assistant", "content": ""})] if self._chat else []

    def piece(self, text: str) -> dict[str, Any]:
        """The chunk of a piece of the text."""
        return self._chunk({"content": text} if self._chat else text)

    def last(self, answer: Completion) -> list[dict[str, Any]]:
        """Chunks after the text: why it ended, and what it took."""
        end = self._chunk({} if self._chat else "", answer.finish_reason)
        if not self._include_usage:
            return [{**end, "lazyllm": _lazyllm(answer)}]
        numbers = {"choices": [], "usage": _usage(answer), "lazyllm": _lazyllm(answer)}
        return [end, {**end, **numbers}]

    def _chunk(self, said: Any, finish_reason: str | None = None) -> dict[str, Any]:
        choice = _choice({"delta" if self._chat else "text": said}, finish_reason)
        return {
            **self._common,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": [choice],
            **({"usage": None} if self._include_usage else {}),
        }


def _choice(said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}


def _usage(answer: Completion) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": answer.prompt_tokens + answer.new_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        "prompt_computed_percent": answer.report.prompt_computed_percent,  # not OpenAI's
    }


def _lazyllm(answer: Completion) -> dict[str, Any]:
    """What was computed; names and meanings are those of `lazyllm_ext.hf.Report`, but for times."""
    report = answer.report
    return {
        "schedule": report.schedule.get("name"),
        "waited_seconds": answer.waited_seconds,
        "ttft_seconds": answer.ttft_seconds,
        "tokens_per_second": answer.tokens_per_second,
        "prompt_computed_percent": report.prompt_computed_percent,
        "boundary_layers": report.boundary_layers,
        "tokens_total": report.tokens_total,
        "tokens_per_stage": report.tokens_per_stage,
        "tokens_per_layer": report.tokens_per_layer,
        "revived_per_boundary": report.revived_per_boundary,
        "kv_bytes": report.kv_bytes,
        "aux_bytes": report.aux_bytes,
    }
