"""What is wrong with a request is said as OpenAI says it."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from lazyllm_ext.serve.engine import ClientLeft, Sampling

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

# What is sent beside a good request, and the parameter that the error names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": 1e12}, "max_tokens"),
    ({"max_tokens": float("inf")}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 4}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": "x"}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"top_k": 5}, "top_k"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [user([{"type": "image_url"}])]}, "messages[0].content[0]"),
    ({"messages": [user("\ud800")]}, "messages[0].content"),
]  # fmt: skip


def post(served: Served, path: str = "chat/completions", **options: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/{path}", timeout=60, **options)


@pytest.mark.parametrize("more,param", REFUSED, ids=lambda value: str(value)[:40])
def test_refused_by_name(served: Served, more: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": NAME, "messages": [user("Hi")], **more})
    response = post(served, content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].startswith(f"{param.partition('[')[0]}")
    assert served.log == [f"400: {error['message']}"]


@pytest.mark.parametrize(
    "prompt", ["", None, [], ["a", "b"], [[1], [2]], [1, "a"], [1, -1], [1, 10**6], 5]
)
def test_refused_prompts(served: Served, prompt: Any) -> None:
    response = post(served, "completions", json={"model": NAME, "prompt": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("more", [{"logprobs": 0}, {"echo": True}, {"suffix": "x"}, {"best_of": 2}])
def test_refused_of_completions(served: Served, more: dict[str, Any]) -> None:
    response = post(served, "completions", json={"model": NAME, "prompt": "Hi", **more})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(more))


def test_the_client_raises_its_own_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        served.chat([user("Hi")], model="gpt-9")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        served.client().models.retrieve("gpt-9")
    with pytest.raises(openai.BadRequestError) as several:
        served.chat([user("Hi")], n=2)
    assert several.value.param == "n"
    assert "n: expected 1" in several.value.message


def test_too_long(served: Served) -> None:
    long = "x" * CONTEXT
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as error:
            served.chat([user(long)], max_tokens=None, stream=stream)
        assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as error:
        served.complete(long[:-10], max_tokens=11)
    assert error.value.code == "context_length_exceeded"
    assert served.complete(long[:-10], max_tokens=10).usage.completion_tokens == 10
    # Where no number is named, the answer has what room is left.
    room = CONTEXT - len(served.chat_tokens([user(long[:-10])]))
    chat = served.chat([user(long[:-10])], max_tokens=None)
    assert chat.usage.completion_tokens == room


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object(served: Served, body: bytes) -> None:
    response = post(served, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


def test_other_types_routes_and_methods(served: Served) -> None:
    # A page of another site may send text, but no JSON, without being asked whether it may.
    assert post(served, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert "message" in post(served, "embeddings", json={}).json()["error"]
    assert post(served, "embeddings", json={}).status_code == 404
    assert httpx.get(f"{served.url}/v1/completions").status_code == 405


def test_a_fault_of_the_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(served.engine.lazy.model, "generate", fail)
    with pytest.raises(openai.InternalServerError) as whole:
        served.chat([user("Hi")])
    assert "RuntimeError" in whole.value.message
    with pytest.raises(openai.APIError) as streamed:
        list(served.chat([user("Hi")], stream=True))
    assert "RuntimeError" in streamed.value.message
    assert "secret" not in whole.value.message + streamed.value.message
    monkeypatch.undo()
    assert served.chat([user("Hi")]).usage.completion_tokens == 12  # it goes on


def test_a_full_queue(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, answer = threading.Event(), served.engine.generate

    def gated(*args: Any) -> Any:
        assert gate.wait(30)
        return answer(*args)

    monkeypatch.setattr(served.engine, "generate", gated)
    expected = served.answer(served.chat_tokens([user(STORY)]))
    with ThreadPoolExecutor(1 + MAX_QUEUE) as pool:
        asked = [pool.submit(served.chat, [user(STORY)]) for _ in range(1 + MAX_QUEUE)]
        health = f"{served.url}/health"
        full = eventually(lambda: httpx.get(health).json()["requests"] == 1 + MAX_QUEUE)
        try:
            assert full
            with pytest.raises(openai.RateLimitError, match="2 requests wait"):
                served.chat([user(STORY)])
        finally:
            gate.set()
        for response in asked:
            assert response.result().choices[0].message.content == expected
    assert served.chat([user(STORY)]).choices[0].message.content == expected


def test_no_more_are_read_than_may_wait(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, ask, asked = threading.Event(), served.engine.chat_request, []

    def gated(*args: Any) -> Any:
        asked.append(args)
        assert gate.wait(30)
        return ask(*args)

    monkeypatch.setattr(served.engine, "chat_request", gated)
    with ThreadPoolExecutor(1 + MAX_QUEUE) as pool:
        first = [pool.submit(served.chat, [user(STORY)]) for _ in range(1 + MAX_QUEUE)]
        try:
            assert eventually(lambda: len(asked) == 1 + MAX_QUEUE)
            with pytest.raises(openai.RateLimitError, match="2 requests wait"):
                served.chat([user(STORY)])
        finally:
            gate.set()
        for response in first:
            assert response.result().usage.completion_tokens == 12
    assert len(asked) == 1 + MAX_QUEUE
    with pytest.raises(openai.BadRequestError):  # gives its place back
        served.chat([user("x" * CONTEXT)])
    assert served.chat([user(STORY)]).usage.completion_tokens == 12


def test_a_client_that_leaves_before_it_has_asked(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)  # to caplog
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head + b'Content-Length: 100\r\n\r\n{"model"')
    assert eventually(lambda: bool(served.log))
    assert served.complete(STORY).usage.completion_tokens == 12
    assert served.log[0] == "the client left"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def _left(served: Served) -> bool:
    return httpx.get(f"{served.url}/health").json()["requests"] == 0


def test_a_client_that_leaves_a_stream_stops_it(served: Served) -> None:
    stream = served.chat([user(STORY)], max_tokens=3000, stream=True)
    for _ in range(3):
        next(stream)
    stream.close()
    assert eventually(lambda: _left(served))
    assert "the client left" in served.log
    # What was computed is kept, and is far from 3000 tokens.
    (entry,) = served.engine.caches._entries
    assert len(STORY) < len(entry.tokens) < 1500


def test_a_client_that_leaves_a_whole_answer_stops_it(served: Served) -> None:
    with pytest.raises(openai.APITimeoutError):
        served.client(timeout=0.5).chat.completions.create(
            model=NAME, messages=[user(STORY)], max_tokens=3000
        )
    assert eventually(lambda: _left(served))
    assert "the client left" in served.log
    assert all(len(entry.tokens) < 1500 for entry in served.engine.caches._entries)


class _LeavesLater(threading.Event):
    """Found set from the second look on: the first one is before the prefill begins."""

    looks = 0

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > 1


def test_a_client_that_leaves_during_the_prefill(served: Served) -> None:
    engine, left, pieces = served.engine, _LeavesLater(), []
    asked = engine.completion_request(STORY, Sampling(3000, 0.0, 1.0, None, ()))
    with pytest.raises(ClientLeft):
        engine.generate(asked, pieces.append, left)
    assert left.looks == 2  # before the prefill, and after its first layer
    assert pieces == []
    assert len(engine.caches) == 0  # a cache of half the layers is of no use
    expected = served.answer(asked.tokens)
    assert served.complete(STORY).choices[0].text == expected


@pytest.mark.parametrize("when", [threading.Event, _LeavesLater], ids=["before", "during"])
def test_a_client_that_leaves_a_further_turn_loses_no_cache(
    served: Served, when: Callable[[], threading.Event]
) -> None:
    engine, left = served.engine, when()
    served.complete(STORY, max_tokens=3)
    (before,) = engine.caches._entries
    asked = engine.completion_request([*before.tokens, 70, 71], Sampling(50, 0.0, 1.0, None, ()))
    left.set()
    with pytest.raises(ClientLeft):
        engine.generate(asked, lambda piece: None, left)
    (after,) = engine.caches._entries
    assert after.tokens[: len(before.tokens)] == before.tokens
    assert len(after.tokens) <= len(asked.tokens) + 1


def test_names_in_errors_are_ascii(served: Served) -> None:
    for body in ({"\x1b[2J": 1}, {"\ud800": 1}, {"stream": True, "stream_options": {"\udc00": 1}}):
        whole = {"model": NAME, "prompt": "A", **body}
        response = httpx.post(
            f"{served.url}/v1/completions",
            content=json.dumps(whole),
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert "not supported" in message
        assert message.isascii()
        assert message.isprintable()


def test_a_client_that_leaves_the_queue(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, answer, asked = threading.Event(), served.engine.generate, []

    def gated(*args: Any) -> Any:
        asked.append(args[0])
        assert gate.wait(30)
        return answer(*args)

    monkeypatch.setattr(served.engine, "generate", gated)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.chat, [user(STORY)])
        assert eventually(lambda: len(asked) == 1)
        with pytest.raises(openai.APITimeoutError):
            served.client(timeout=0.3).chat.completions.create(
                model=NAME, messages=[user("never mind")]
            )
        assert eventually(lambda: "the client left" in served.log)
        gate.set()
        assert first.result().usage.completion_tokens == 12
    assert eventually(lambda: _left(served))
    assert len(asked) == 1


@pytest.fixture
def locked(folder: Path) -> Iterator[Served]:
    """A model without a chat template, behind a key."""
    yield from running(load_engine(folder, "dense"), api_key="key")


def test_a_key_and_no_template(locked: Served) -> None:
    assert httpx.get(f"{locked.url}/health").status_code == 200
    with pytest.raises(openai.AuthenticationError) as wrong:
        locked.client(api_key="kez").models.list()
    assert wrong.value.code == "invalid_api_key"
    assert post(locked, "completions", json={}).status_code == 401
    client = locked.client(api_key="key")
    response = client.completions.create(model=NAME, prompt=STORY, temperature=0, max_tokens=8)
    tokens = locked.engine.tokenizer(STORY)["input_ids"]
    assert response.choices[0].text == locked.answer(tokens, max_new_tokens=8)
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model=NAME, messages=[user("Hi")])
