"""The prompt: where its text comes from, and its tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyllm_ext.json_input import read_text

from .errors import CommandError, as_input_error

if TYPE_CHECKING:
    from torch import Tensor


def read_prompt(prompt: str | None, file: Path | None, question: str | None) -> str:
    """The text that the user asks about, and the question after it.

    Raises:
        CommandError: two sources, none, one that cannot be read, or nothing but blanks.
    """
    if prompt is not None and file is not None:
        raise CommandError("--prompt: expected one of --prompt and --prompt-file, got both")
    if prompt is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise CommandError(
            "--prompt: expected --prompt, --prompt-file or text on standard input, got none"
        )
    if prompt is not None:
        source, text = "--prompt", prompt
    elif file is not None:
        source, text = "--prompt-file", _read(file)
    else:
        source = "standard input"
        text = _stdin()
    if not text.strip():
        raise CommandError(f"{source}: expected a prompt, got an empty one")
    if question is None:
        return text
    if not question.strip():
        raise CommandError("--question: expected a question, got an empty one")
    return f"{text.rstrip()}\n\n{question}"


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"--prompt-file: cannot read {file}: {reason}") from error
    with as_input_error(ValueError):
        return read_text(data, f"--prompt-file: {file}")


def _stdin() -> str:
    """All of standard input; UTF-8, whatever the locale says."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # a stream of text that stands in for it
        return sys.stdin.read()
    with as_input_error(ValueError):
        return read_text(stream.read(), "standard input")


def encode(tokenizer: Any, text: str, chat: bool | None) -> Tensor:
    """The prompt's tokens [1, n] int64, as the user's turn of a chat if `chat` says so.

    Args:
        chat: None for a chat wherever the tokenizer has a template.

    Raises:
        CommandError: a chat is asked for and the tokenizer has no template, the template fails, or
            there are no tokens.
    """
    import torch

    from lazyllm_ext.hf import as_chat

    template = getattr(tokenizer, "chat_template", None)
    if chat and not template:
        raise CommandError("--chat: expected a model with a chat template, got one without")
    if template and chat is not False:
        with as_input_error(ValueError):
            turn = as_chat(tokenizer, [{"role": "user", "content": text}])
        ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(text)["input_ids"]
    if not ids:
        raise CommandError("prompt: expected at least one token, got none")
    return torch.tensor([ids])
