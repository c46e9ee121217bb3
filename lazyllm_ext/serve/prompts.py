"""Prompts -> tokens, by the model's template and tokenizer; safe for several threads at once."""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

from lazyllm_ext.hf import as_chat
from lazyllm_ext.json_input import InputError

from .errors import ApiError, expected

_SHOWN = 200  # characters of what a tokenizer says

# What composition can make of characters: at most 4 become one.
_COMPOSED = 4
_Form = Literal["NFC", "NFKC"]
_FORMS: tuple[_Form, ...] = ("NFC", "NFKC")


class Prompts:
    """A model's tokenizer and chat template, and what fits its context.

    Args:
        tokenizer: of the model.
        context: tokens of its longest prompt; None for no bound.
        vocabulary: how many tokens the model knows.

    Raises:
        ValueError: the chat template is not one.
    """

    def __init__(self, tokenizer: Any, context: int | None, vocabulary: int):
        self._tokenizer, self._context, self._vocabulary = tokenizer, context, vocabulary
        # A token stands for no more characters than it is written with. Some tokenizers drop
        # characters (blanks around special tokens); these count here, too.
        longest = max(map(len, tokenizer.get_vocab()), default=1)
        self.most_characters = None if context is None else context * longest
        self._form = _normal_form(tokenizer)
        self._check_template()
        # A fast tokenizer sets its truncation where it is another than before, which two threads
        # must not do at once: after this call it is not.
        tokenizer("")

    @property
    def most_bytes(self) -> int | None:
        """Bytes of a request's JSON, ample for the longest prompt; None for no bound."""
        # A character is at most 12 bytes: two times \\uXXXX.
        return None if self.most_characters is None else (1 << 20) + 12 * self.most_characters

    def of_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a chat as the model's template writes it.

        Raises:
            ApiError: there is no template, it refuses the messages, they are too long, or the
                tokenizer is another model's.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise ApiError(
                "messages: expected a model with a chat template, got one without; ask "
                "/v1/completions",
                "messages",
            )
        try:
            text = as_chat(self._tokenizer, messages)
        except InputError as error:
            raise _refused("messages", f"the model's {error}") from error
        return self._encode("messages", text, add_special_tokens=False)

    def of_text(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            ApiError: it is too long, or the tokenizer is another model's.
        """
        return self._encode("prompt", text)

    def checked(self, tokens: list[int], name: str = "prompt") -> list[int]:
        """These tokens. Raises ApiError for a number that is none of the model's."""
        wrong = next((token for token in tokens if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise expected(name, f"tokens from 0 to {self._vocabulary - 1}", wrong)
        return tokens

    def _encode(self, name: str, text: str, **options: Any) -> list[int]:
        self._check_length(name, text)
        try:
            tokens: list[int] = self._tokenizer(text, **options)["input_ids"]
        except Exception as error:  # tokenizers have no class of their own for characters they lack
            said = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
            raise _refused(name, f"the model's tokenizer refuses it: {said}") from error
        return self.checked(tokens, name)

    def _check_length(self, name: str, text: str) -> None:
        """Before it is tokenized: that takes seconds and a hundred times a long text's bytes."""
        most, length = self.most_characters, len(text)
        if most is None or length <= most:
            return
        if self._form is not None and length <= _COMPOSED * most:
            length = len(unicodedata.normalize(self._form, text))
            if length <= most:
                return
        raise ApiError(
            f"{name}: expected at most {self._context} tokens, the model's context, which no text "
            f"of more than {most} characters fits; got {length} characters",
            name,
            code="context_length_exceeded",
        )

    def _check_template(self) -> None:
        if not getattr(self._tokenizer, "chat_template", None):
            return
        from jinja2 import TemplateSyntaxError

        try:
            as_chat(self._tokenizer, [{"role": "user", "content": "Hi"}])
        except InputError as error:
            if isinstance(error.__cause__, TemplateSyntaxError):
                raise
            # Else it may refuse this chat and take others.


def _normal_form(tokenizer: Any) -> _Form | None:
    """How a tokenizer composes characters before it splits a text; None for not at all."""
    written = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None))
    return next((form for form in reversed(_FORMS) if form in written), None)


def _refused(name: str, said: str) -> ApiError:
    # A template may repeat what a client wrote, and it goes into logs.
    said = "".join(letter if letter.isprintable() else "?" for letter in said)
    return ApiError(f"{name}: {said}", name)
