"""Pieces of text are the whole text, up to the first stop string, for any tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import AutoTokenizer

from lazyllm_ext.serve.text import Text

# Single bytes: letters that stop strings are made of, and parts of longer characters.
_BYTES = "abc é€🙂\u00a0\ufffd".encode() + b"\xff\x80"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)], True
    return text, False


@given(
    some.lists(some.sampled_from(_BYTES), max_size=30),
    some.lists(some.text("abc", min_size=1, max_size=4), max_size=4),
)
def test_any_bytes(tokenizer: Any, given_bytes: list[int], stops: list[str]) -> None:
    table = tokenizer.backend_tokenizer
    tokens = [_token(table, byte) for byte in given_bytes]
    text, pieces = Text(tokenizer, stops), []
    for token in tokens:
        pieces.append(text.add(token))
        if text.stopped:
            break
    pieces.append(text.end())
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert ("".join(pieces), text.stopped) == expected(whole, stops)


def _token(table: Any, byte: int) -> int:
    """The token of a byte, which GPT-2's alphabet writes as a letter that can be printed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in printable]
    letter = chr(byte) if byte in printable else chr(256 + others.index(byte))
    return table.token_to_id(letter)


def test_characters_come_whole(tokenizer: Any) -> None:
    table, text = tokenizer.backend_tokenizer, Text(tokenizer, ())
    pieces = [text.add(_token(table, byte)) for byte in "é€".encode()]
    assert pieces == ["", "é", "", "", "€"]


def test_special_tokens_have_no_text(tokenizer: Any) -> None:
    text = Text(tokenizer, ("ab",))
    tokens = [tokenizer.bos_token_id, *tokenizer("xa")["input_ids"], tokenizer.pad_token_id]
    assert [text.add(token) for token in tokens] == ["", "x", "", ""]
    assert text.end() == "a"
    assert not text.stopped
