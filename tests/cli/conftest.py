"""A tiny model in a folder, with a tokenizer that has a token for each byte."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import helpers
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lazyllm_ext.cli.app import run as run_command_line

CHAT_TEMPLATE = (
    "{% for message in messages %}<u>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
CONTEXT = 256


@dataclass(frozen=True)
class Ran:
    """What a command line printed, and its exit status."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 5 layers with random weights, a context of 256 tokens and no chat template."""
    return _save(tmp_path_factory.mktemp("tiny"), None)


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    return _save(tmp_path_factory.mktemp("tiny-chat"), CHAT_TEMPLATE)


@pytest.fixture
def asking(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """The model's folder with a generation configuration that asks for what is given."""

    def make(**settings: object) -> Path:
        asks = shutil.copytree(folder, tmp_path / "asking")
        (asks / "generation_config.json").write_text(json.dumps(settings))
        return asks

    return make


def _save(folder: Path, template: str | None) -> Path:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = helpers.tiny_llama(
        vocab_size=len(vocabulary), max_position_embeddings=CONTEXT, eos_token_id=None
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Runs `lazyllm-ext` with the arguments, in this process."""

    def run(*arguments: object, stdin: str = "") -> Ran:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_command_line([str(argument) for argument in arguments])
        return Ran(status, out.getvalue(), err.getvalue())

    return run
