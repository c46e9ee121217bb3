"""A tiny model behind a real server on a free port, and OpenAI's client in front of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from cli.conftest import folder, run
from hf.conftest import REAL_MODELS, one_thread
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import lazyllm_ext
from lazyllm_ext.cli.serve import listen, make_server
from lazyllm_ext.serve import Engine, PrefixCaches
from lazyllm_ext.serve.app import Settings, make_app

__all__ = ["folder", "one_thread", "run"]  # fixtures

collect_ignore = [] if "smollm2" in REAL_MODELS else ["test_real.py"]

NAME = "tiny"
CONTEXT = 4096
MAX_TOKENS = 20  # of an answer whose request names no number
MAX_QUEUE = 2
BUDGET = 1 << 30
PRUNED: dict[str, Any] = {
    "name": "pruned",
    "boundaries": [{"layer": 1, "keep": 0.5}, {"layer": 3, "keep": 0.3}],
    "window": 4,
    "pool": 3,
}
# What an answer was read after stands before it in the history, too.
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'][0] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
STORY = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. "


@dataclass
class Served:
    """A server, its insides, and what it logged."""

    engine: Engine
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        given = {"api_key": "any", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def chat(self, messages: list[Any], **options: Any) -> Any:
        """A chat completion; greedy and of 12 tokens unless told otherwise."""
        given = {"temperature": 0, "max_tokens": 12, "model": NAME, **options}
        return self.client().chat.completions.create(messages=messages, **given)

    def complete(self, prompt: Any, **options: Any) -> Any:
        """The same of a completion."""
        given = {"temperature": 0, "max_tokens": 12, "model": NAME, **options}
        return self.client().completions.create(prompt=prompt, **given)

    # The same without the server

    def chat_tokens(self, messages: list[Any]) -> list[int]:
        text = self.engine.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.engine.tokenizer(text, add_special_tokens=False)["input_ids"]

    def generate(self, tokens: list[int], cache: Any = None, **options: Any) -> Tensor:
        """All tokens [n + 12] of `model.generate`."""
        ids = torch.tensor([tokens])
        given = {"max_new_tokens": 12, "do_sample": False, "past_key_values": cache, **options}
        mask = torch.ones_like(ids)
        return self.engine.lazy.model.generate(ids, attention_mask=mask, pad_token_id=0, **given)[0]

    def answer(self, tokens: list[int], cache: Any = None, **options: Any) -> str:
        """The text that `model.generate` gives after these tokens."""
        new = self.generate(tokens, cache, **options)[len(tokens) :]
        return self.engine.tokenizer.decode(new, skip_special_tokens=True)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it holds before so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def load_engine(folder: Path, schedule: Any, **config: Any) -> Engine:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **config).eval()
    lazy = lazyllm_ext.apply(model, schedule)
    return Engine(lazy, tokenizer, max_tokens=MAX_TOKENS, cache_bytes=BUDGET)


def running(engine: Engine, **settings: Any) -> Iterator[Served]:
    """A server in a thread, until the generator is closed."""
    listener = listen("127.0.0.1", 0)
    served = Served(engine, listener.getsockname()[1])
    given = {"name": NAME, "max_queue": MAX_QUEUE, "log": served.log.append, **settings}
    server = make_server(make_app(engine, Settings(**given)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert eventually(lambda: server.started)
    yield served
    server.should_exit = True
    thread.join(30)
    listener.close()
    assert not thread.is_alive()


def only_letters(engine: Engine) -> None:
    """Answers of a random model are text that its tokenizer reads as the same tokens."""
    vocabulary = engine.tokenizer.get_vocab()
    others = [number for token, number in vocabulary.items() if not ("!" <= token <= "~")]
    others += [number for token, number in vocabulary.items() if len(token) > 1]
    engine.lazy.model.generation_config.suppress_tokens = others


def _tiny(folder: Path, schedule: Any) -> Iterator[Served]:
    engine = load_engine(folder, schedule, max_position_embeddings=CONTEXT)
    only_letters(engine)
    engine.tokenizer.chat_template = TEMPLATE
    yield from running(engine)


@pytest.fixture(scope="session")
def _pruned(folder: Path) -> Iterator[Served]:
    yield from _tiny(folder, PRUNED)


@pytest.fixture(scope="session")
def _dense(folder: Path) -> Iterator[Served]:
    yield from _tiny(folder, "dense")


def _fresh(served: Served) -> Served:
    served.engine.caches = PrefixCaches(BUDGET)
    served.log.clear()
    return served


@pytest.fixture
def served(_pruned: Served) -> Served:
    """A schedule that drops and revives tokens; no caches yet."""
    return _fresh(_pruned)


@pytest.fixture
def dense(_dense: Served) -> Served:
    """The same model with nothing dropped."""
    return _fresh(_dense)
