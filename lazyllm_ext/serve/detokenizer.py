"""Tokens -> text, piece by piece, up to a stop string: incremental detokenization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # what bytes of a character read as that is not complete, or none at all


class Detokenizer:
    """The text of an answer as its tokens come.

    What is handed out is never taken back: a character of which only some bytes have come, and what
    may be the beginning of a stop string, waits. Special tokens have no text, but stop strings may
    name them.

    Not `tokenizers.decoders.DecodeStream`, which decodes in the same way: it loses a character that
    is unfinished when the tokens end, and raises in the middle where byte tokens, as Llama 2 and
    Gemma have them, turn out to be no character. Tokenizers without a fast one have none.

    Args:
        tokenizer: of the model.
        stops: strings that end the text.
        before: tokens that it goes on from; without any, a space in front is the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._marks, marked = _with_marks(tokenizer, stops)
        self._stops = {*stops, *marked}
        self.stopped = False  # by a stop string; it and what follows are not part of the text
        self._tokens = list(before)
        # Tokens from _begin on are decoded again each time, since how a token reads may depend on
        # the one before it; those before _end have been read.
        self._begin, self._end = 0, len(before)
        self._waiting = ""

    def add(self, token: int) -> str:
        """What is certain now."""
        self._tokens.append(token)
        mark = self._marks.get(token, "")
        new = self._new()
        if new.endswith(_UNFINISHED) and not mark:
            return ""
        if new:
            self._begin, self._end = self._end, len(self._tokens)
        return self._release(new + mark)

    def end(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        released = self._release(self._new())
        rest = "" if self.stopped else self._waiting
        self._waiting = ""
        return released + self._shown(rest)

    def _new(self) -> str:
        """The text of the tokens that have not been read."""
        before = self._decode(self._tokens[self._begin : self._end])
        text = self._decode(self._tokens[self._begin :])
        if text.startswith(before) or before.endswith(_UNFINISHED):
            return text[len(before) :]
        # Bytes that are no character, which change how the bytes before them read.
        return self._decode(self._tokens[self._end :])

    def _decode(self, tokens: list[int]) -> str:
        decoded = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)

    def _release(self, new: str) -> str:
        text = self._waiting + new
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._waiting = True, ""
            return self._shown(text[: min(found)])
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - held :]
        return self._shown(text[: len(text) - held])

    def _shown(self, text: str) -> str:
        for mark in self._marks.values():
            text = text.replace(mark, "")
        return text


def _with_marks(tokenizer: Any, stops: Sequence[str]) -> tuple[dict[int, str], list[str]]:
    """What stands in the text for special tokens that stop strings name, and such stop strings.

    It is half of a surrogate pair, which no decoded text holds.
    """
    marks: dict[int, str] = {}
    marked = list(stops)
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special and any(token.content in stop for stop in stops):
            marks[number] = mark = chr(0xD800 + len(marks))
            marked = [stop.replace(token.content, mark) for stop in marked]
    return marks, marked


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
