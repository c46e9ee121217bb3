"""Who is answered, how much is read of whom, and that nobody keeps a place from others."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from lazyllm_ext.serve.errors import ApiError
from lazyllm_ext.serve.prompts import Prompts

from .conftest import (
    CONTEXT,
    MAX_QUEUE,
    NAME,
    STORY,
    Served,
    eventually,
    load_engine,
    running,
    user,
)

_HEAD = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
_BODY = json.dumps({"model": NAME, "prompt": "A", "max_tokens": 1}).encode()


def _open(served: Served, headers: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    connection.sendall(f"{_HEAD}Host: localhost\r\n{headers}\r\n".encode() + body)
    return connection


def _status(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(4096).split()[1])


def _errors(served: Served, body: dict[str, Any], path: str) -> tuple[int, dict[str, Any]]:
    response = httpx.post(f"{served.url}/v1/{path}", json={"model": NAME, **body}, timeout=60)
    return response.status_code, response.json()["error"]


# What a request says and how much of it comes


@pytest.mark.parametrize(
    "headers,body",
    [
        (f"Content-Length: {10**15}\r\n", b""),  # said, and not waited for
        ("Transfer-Encoding: chunked\r\n", b"200000\r\n" + b" " * 0x200000 + b"\r\n0\r\n\r\n"),
    ],
    ids=["declared", "chunked"],
)
def test_too_much(served: Served, headers: str, body: bytes) -> None:
    assert _status(_open(served, headers, body)) == 413
    assert f"{served.engine.most_bytes} bytes" in served.log[0]


def test_a_body_in_pieces(served: Served) -> None:
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in _BODY) + b"0\r\n\r\n"
    assert _status(_open(served, "Transfer-Encoding: chunked\r\n", pieces)) == 200


def test_a_body_that_stalls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyllm_ext.serve.admission._BODY_SECONDS", 2)
    length = "Content-Length: 100000\r\n"
    small = [_open(served, length, b"{") for _ in range(MAX_QUEUE + 2)]
    assert served.complete(STORY).usage.completion_tokens == 12  # they have no place
    large = [_open(served, length, b"{" + b" " * 99_000) for _ in range(MAX_QUEUE + 1)]

    def full() -> bool:
        return _errors(served, {"prompt": "A"}, "completions")[0] == 429

    assert eventually(full)
    assert [_status(connection) for connection in small + large] == [408] * 7
    assert served.complete(STORY).usage.completion_tokens == 12


def test_no_body_is_read_when_the_queue_is_full(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, answer = threading.Event(), served.engine.generate

    def gated(*args: Any) -> Any:
        assert gate.wait(30)
        return answer(*args)

    monkeypatch.setattr(served.engine, "generate", gated)
    with ThreadPoolExecutor(1 + MAX_QUEUE) as pool:
        asked = [pool.submit(served.complete, STORY) for _ in range(1 + MAX_QUEUE)]
        try:
            assert eventually(
                lambda: httpx.get(f"{served.url}/health").json()["requests"] == 1 + MAX_QUEUE
            )
            assert _status(_open(served, "Content-Length: 100\r\n")) == 429
        finally:
            gate.set()
        assert all(done.result().usage.completion_tokens == 12 for done in asked)


# Prompts


def test_a_prompt_far_over_the_context_is_not_tokenized(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = served.engine.tokenizer
    longest = max(map(len, tokenizer.get_vocab()))

    def encode(*args: Any, **options: Any) -> Any:
        raise AssertionError("tokenized")

    monkeypatch.setattr(type(tokenizer), "__call__", encode)
    text = "x" * (longest * CONTEXT + 1)
    for path, body in (
        ("completions", {"prompt": text}),
        ("chat/completions", {"messages": [user(text)]}),
    ):
        status, error = _errors(served, body, path)
        assert status == 400
        assert error["code"] == "context_length_exceeded"
        assert error["param"] == next(iter(body))
        assert f"{longest * CONTEXT} characters" in error["message"]


def test_no_prompt_that_fits_is_refused_for_its_characters(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["a" * 40])
    prompts = Prompts(tokenizer, 10, len(tokenizer))
    assert prompts.of_text("a" * 400) == 10 * [len(tokenizer) - 1]
    with pytest.raises(ApiError, match="got 401 characters"):
        prompts.of_text("a" * 401)
    # Characters that are composed before a text is split count as one.
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    composed = Prompts(tokenizer, 10, len(tokenizer))
    assert len(composed.of_text("e\u0301" * 201)) == 402  # bytes of 201 characters
    with pytest.raises(ApiError, match="got 401 characters"):
        composed.of_text("e\u0301" * 401)


def test_a_slow_prompt_keeps_nobody_waiting(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, tokenizer = threading.Event(), served.engine.tokenizer
    encode = type(tokenizer).__call__

    def gated(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        assert "slow" not in str(text) or gate.wait(30)
        return encode(self, text, *args, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", gated)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(served.complete, "slow")
        try:
            assert served.complete(STORY).usage.completion_tokens == 12
            assert not slow.done()
        finally:
            gate.set()
        assert slow.result().usage.completion_tokens == 12


def test_prompts_are_read_by_several_threads(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("x" * 9, truncation=True, max_length=4)  # what a first call then has to undo
    prompts = Prompts(tokenizer, 10_000, len(tokenizer))
    texts = [STORY * count for count in range(1, 60)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(prompts.of_text, texts))
    assert read == [tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize(
    "template,words",
    [
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
        ("{{ messages[7].content.x }}", "has no element 7"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ raise_exception('no ' ~ messages[0].content) }}", "no Hi?[2J"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
    ],
)
def test_a_template_that_raises(
    served: Served, monkeypatch: pytest.MonkeyPatch, template: str, words: str
) -> None:
    monkeypatch.setattr(served.engine.tokenizer, "chat_template", template)
    status, error = _errors(served, {"messages": [user("Hi\x1b[2J")]}, "chat/completions")
    assert (status, error["param"]) == (400, "messages")
    assert error["message"].startswith("messages: the model's chat template: ")
    assert words in error["message"]
    assert error["message"].isprintable()


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_tokenizer_of_another_model(
    served: Served, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(served.engine._prompts, "_vocabulary", 3)
    name = "prompt" if route == "completions" else "messages"
    status, error = _errors(served, {name: "A fox." if name == "prompt" else [user("A")]}, route)
    assert (status, error["param"]) == (400, name)
    assert error["message"].startswith(f"{name}: expected tokens from 0 to 2, got ")


# Numbers


def test_what_is_wrong_with_a_number(served: Served) -> None:
    status, error = _errors(served, {"prompt": "A", "max_tokens": 1e12}, "completions")
    assert status == 400
    said = "max_tokens: expected a whole number from 1 to 2147483648, got 1000000000000.0"
    assert error["message"] == said


def test_whole_numbers_with_a_point(served: Served) -> None:
    first = served.complete(STORY, max_tokens=5.0, seed=7.0, temperature=1)
    again = served.complete(STORY, max_tokens=5, seed=7, temperature=1)
    assert first.usage.completion_tokens == 5
    assert first.choices[0].text == again.choices[0].text


# Names and keys


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Served]:
    """A server that answers to this machine's names only, and to `mine`."""
    yield from running(load_engine(folder, "dense"), host="mine")


@pytest.mark.parametrize(
    "host,status",
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("app.localhost", 200),
        ("[::1]:8000", 200),
        ("mine:80", 200),
        ("192.168.0.7", 200),  # an address leads to nobody else
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evillocalhost", 403),
        ("", 403),
        ("[", 403),
        ("\xe9", 403),
    ],
)
def test_hosts(local: Served, host: str, status: int) -> None:
    for request in ("GET /health", "GET /v1/models", "POST /v1/completions"):
        with socket.create_connection(("127.0.0.1", local.port), timeout=20) as connection:
            head = f"{request} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            length = len(_BODY) if "POST" in request else 0
            body = _BODY[:length]
            said = f"{head}Content-Length: {length}\r\n\r\n".encode("latin-1")
            connection.sendall(said + body)
            assert int(connection.recv(4096).split()[1]) == status


def test_no_route_under_a_host_that_is_none(served: Served) -> None:
    response = httpx.get(f"{served.url}/none%1b", headers={"Host": "["})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "GET '/none\\x1b': Not Found"


def test_other_names_where_any_may_lead_to_it(served: Served) -> None:
    assert httpx.get(f"{served.url}/health", headers={"Host": "box.example"}).status_code == 200


@pytest.mark.parametrize(
    "sent,status",
    [
        ("Bearer key", 200),
        ("bearer key", 200),
        ("BEARER   key", 200),
        ("Bearer kez", 401),
        ("Bearer", 401),
        ("Basic key", 401),
        ("key", 401),
        ("", 401),
        ("Bearer key key", 401),
    ],
)
def test_keys(keyed: Served, sent: str, status: int) -> None:
    response = httpx.get(f"{keyed.url}/v1/models", headers={"Authorization": sent})
    assert response.status_code == status
    assert ("WWW-Authenticate" in response.headers) == (status == 401)


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[Served]:
    yield from running(load_engine(folder, "dense"), api_key="key")


def test_a_stop_string_of_the_models_own(folder: Path) -> None:
    engine = load_engine(folder, "dense")
    for served in running(engine):
        whole = served.complete(STORY, max_tokens=30).choices[0].text
        engine._stop = (whole[10:14],)
        cut = served.complete(STORY, max_tokens=30, stop=["\u2603"])
        assert cut.choices[0].text == whole[: whole.index(whole[10:14])]
        assert cut.choices[0].finish_reason == "stop"


def test_a_client_of_openai_sees_the_context(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        served.complete("x" * 10**6)
    assert error.value.code == "context_length_exceeded"
