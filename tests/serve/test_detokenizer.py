"""Pieces of text are the whole text, up to the first stop string, for any tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lazyllm_ext.serve.detokenizer import Detokenizer

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
    text, pieces = Detokenizer(tokenizer, stops), []
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
    table, text = tokenizer.backend_tokenizer, Detokenizer(tokenizer, ())
    pieces = [text.add(_token(table, byte)) for byte in "é€".encode()]
    assert pieces == ["", "é", "", "", "€"]


def test_special_tokens_have_no_text(tokenizer: Any) -> None:
    text = Detokenizer(tokenizer, ("ab",))
    tokens = [tokenizer.bos_token_id, *tokenizer("xa")["input_ids"], tokenizer.pad_token_id]
    assert [text.add(token) for token in tokens] == ["", "x", "", ""]
    assert text.end() == "a"
    assert not text.stopped


@pytest.mark.parametrize(
    "stop,words,shown,stopped",
    [
        ("</s>", ["ab", "</s>", "c"], "ab", True),
        ("b</s>", ["ab", "</s>", "c"], "a", True),
        ("<s>a</s>", ["b", "<s>", "a", "<s>", "a", "</s>"], "ba", True),
        ("</s>c", ["a", "</s>", "b", "</s>", "c"], "ab", True),
        ("</s>", ["a", "\xc3", "</s>", "c"], "a\ufffd", True),  # half of a character before it
        ("</s>", ["</", "s>", "c"], "", True),  # the same letters, no special token
        ("</s>", ["a", "<s>", "b"], "ab", False),
        ("b</s>", ["a", "</s>", "b"], "ab", False),
    ],
)
@pytest.mark.parametrize("others", [(), ("never",)])
def test_stops_that_name_special_tokens(
    tokenizer: Any,
    stop: str,
    others: tuple[str, ...],
    words: list[str],
    shown: str,
    stopped: bool,
) -> None:
    text, got = Detokenizer(tokenizer, (*others, stop)), ""
    for token in (token for word in words for token in _tokens(tokenizer, word)):
        if not text.stopped:
            got += text.add(token)
    assert (got + text.end(), text.stopped) == (shown, stopped)


def _tokens(tokenizer: Any, word: str) -> list[int]:
    """A special token, or the tokens of a word's bytes."""
    table = tokenizer.backend_tokenizer
    if word in ("<s>", "</s>"):
        return [table.token_to_id(word)]
    return [_token(table, byte) for byte in word.encode("latin-1")]


@pytest.fixture(scope="module")
def with_spaces() -> Any:
    """As Llama 2 has it: a token has the space before it, and a text loses its first one."""
    words = ["<s>", "▁Paris", "▁is", "▁", "▁Rome", "s"]
    table = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    table.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=table, bos_token="<s>")


@pytest.mark.parametrize(
    "before,shown",
    [
        ([], "Paris is Romes"),
        ([0], "Paris is Romes"),  # the beginning of a text
        ([2], " Paris is Romes"),
        ([3], " Paris is Romes"),
        ([5], " Paris is Romes"),
    ],
)
def test_the_first_space_depends_on_what_is_before(
    with_spaces: Any, before: list[int], shown: str
) -> None:
    text = Detokenizer(with_spaces, (), before)
    assert "".join(map(text.add, [1, 2, 4, 5])) + text.end() == shown
    whole = with_spaces.decode([*before, 1, 2, 4, 5], skip_special_tokens=True)
    assert with_spaces.decode(before, skip_special_tokens=True) + shown == whole


@pytest.fixture(scope="module")
def with_bytes() -> Any:
    """As Llama 2 has it: what has no token of its own, a line break among it, comes as bytes."""
    words = [*(f"<0x{byte:02X}>" for byte in range(256)), "b", "▁word"]
    vocabulary = {word: number for number, word in enumerate(words)}
    table = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    table.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=table)


@pytest.mark.parametrize(
    "tokens,pieces,rest",
    [
        ([10, *"🙂".encode(), 256], ["\n", "", "", "", "🙂", "b"], ""),
        # What tokenizers' own DecodeStream cannot do: it raises where bytes turn out to be no
        # character and others stand before them, and has no text for an unfinished end.
        ([10, 0xF0, 0x9F, 257], ["\n", "", "", "\ufffd\ufffd word"], ""),
        ([*"é".encode(), 0xC3, 256], ["", "é", "", "\ufffdb"], ""),
        ([256, 0xF0, 0x9F], ["b", "", ""], "\ufffd\ufffd"),
    ],
)
def test_tokens_of_bytes(with_bytes: Any, tokens: list[int], pieces: list[str], rest: str) -> None:
    text = Detokenizer(with_bytes, ())
    assert [text.add(token) for token in tokens] == pieces
    assert text.end() == rest


def test_a_prompt_that_ends_within_a_character(tokenizer: Any, with_bytes: Any) -> None:
    """Its end is the prompt's, and what follows is the completion's."""
    table = tokenizer.backend_tokenizer
    first, second, letter = (_token(table, byte) for byte in "éb".encode())
    for words, tokens in ((tokenizer, (first, second, letter)), (with_bytes, (*"é".encode(), 256))):
        text = Detokenizer(words, (), tokens[:1])
        assert [text.add(token) for token in tokens[1:]] == ["", "b"]
        assert text.end() == ""
