"""The tokenizer file in an export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def tokenizer_json(tokenizer: Any) -> str:
    """The text of a tokenizer.json.

    Args:
        tokenizer: a fast tokenizer of transformers, or the path of a tokenizer.json.

    Raises:
        ValueError: the file cannot be read or is none, or the tokenizer is a slow one.
    """
    if isinstance(tokenizer, (str, Path)):
        try:
            text = Path(tokenizer).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ValueError(f"tokenizer: cannot read {str(tokenizer)!r}: {reason}") from error
        _parsed(text, str(tokenizer))
        return text
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            "tokenizer: expected a fast tokenizer or the path of a tokenizer.json, got "
            f"{type(tokenizer).__name__}"
        )
    return backend.to_str()


def check_tokenizer(text: str, vocab_size: int) -> str:
    """The digest of the tokenizer's vocabulary, token by token with its id.

    Raises:
        ValueError: it makes ids that the model does not know.
    """
    vocabulary = _parsed(text, "tokenizer.json").get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocab_size:
        raise ValueError(
            f"tokenizer: expected ids below {vocab_size}, the model's vocabulary, got {largest}: "
            "another model's tokenizer"
        )
    return hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest()


def _parsed(text: str, where: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"tokenizer: expected a tokenizer.json, got {where!r}: {error}") from error
