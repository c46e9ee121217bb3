"""The FastAPI application: routes, errors, streams, and clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .engine import ClientLeft, Completion, Engine
from .errors import ApiError, check_model, internal
from .parameters import read_parameters
from .queue import Job, RequestQueue
from .shapes import Shape

_MOST_BYTES = 64 << 20  # of a request
_CLIENT_LEFT = 499  # what servers log for it; nobody reads the response


@dataclass(frozen=True)
class Settings:
    """What the server is told beside the model."""

    name: str  # the model's name in requests and responses
    max_queue: int = 16  # how many requests may wait
    api_key: str | None = None  # what clients have to send; None for no check
    log: Callable[[str], object] = lambda line: None  # is told each request in one line


def make_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application of one model; its `state.queue` is to be closed before it ends."""
    server = _Server(engine, settings)

    # No pages that describe it: they would load scripts from elsewhere.
    app = FastAPI(title="lazyllm-ext", openapi_url=None)
    app.state.queue = server.queue
    app.add_api_route("/health", server.health)
    app.add_api_route("/v1/models", server.models)
    app.add_api_route("/v1/models/{name:path}", server.model)
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"])
    app.add_api_route("/v1/completions", server.complete, methods=["POST"])
    app.add_exception_handler(ApiError, server.refused)
    app.add_exception_handler(HTTPException, server.no_route)
    app.add_exception_handler(ClientDisconnect, server.left)
    app.add_exception_handler(Exception, server.failed)
    return app


class _Server:
    """The routes, the responses that they give, and what is said of errors."""

    def __init__(self, engine: Engine, settings: Settings):
        self._engine, self._settings = engine, settings
        self.queue = RequestQueue(engine, settings.max_queue)
        self._watchers: set[asyncio.Task[None]] = set()
        self._started = int(time.time())

    async def health(self) -> dict[str, Any]:
        caches = self._engine.caches
        return {
            "status": "ok",
            "model": self._settings.name,
            "requests": len(self.queue),
            "caches": len(caches),
            "cache_bytes": caches.nbytes,
        }

    async def models(self, request: Request) -> dict[str, Any]:
        self._check_key(request)
        return {"object": "list", "data": [self._description()]}

    async def model(self, name: str, request: Request) -> dict[str, Any]:
        self._check_key(request)
        check_model(name, self._settings.name)
        return self._description()

    def _description(self) -> dict[str, Any]:
        return {
            "id": self._settings.name,
            "object": "model",
            "created": self._started,
            "owned_by": "lazyllm-ext",
        }

    async def chat(self, request: Request) -> Response:
        return await self._respond(request, chat=True)

    async def complete(self, request: Request) -> Response:
        return await self._respond(request, chat=False)

    def _check_key(self, request: Request) -> None:
        key = self._settings.api_key
        if key is None:
            return
        sent = request.headers.get("authorization", "").encode("latin-1")  # as bytes came
        if not hmac.compare_digest(sent, f"Bearer {key}".encode()):
            raise ApiError(
                "Authorization: expected 'Bearer ' and the key that the server was started with",
                status=401,
                code="invalid_api_key",
                kind="authentication_error",
            )

    async def _respond(self, request: Request, chat: bool) -> Response:
        self._check_key(request)
        body = await _body(request)
        parameters = read_parameters(body, chat=chat, model=self._settings.name)
        engine = self._engine
        prepare: Any = engine.chat_request if chat else engine.completion_request
        with self.queue.reserve():
            prepared = await asyncio.to_thread(prepare, parameters.prompt, parameters.sampling)
        job = self.queue.submit(prepared)
        self._watch(request, job)
        shape = Shape(chat, self._settings.name, parameters.include_usage)
        if parameters.stream:
            return StreamingResponse(
                self._stream(job, shape),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )
        return await self._whole(job, shape)

    async def _whole(self, job: Job, shape: Shape) -> Response:
        with suppress(ClientLeft):
            async for event in job.events():
                if isinstance(event, Completion):
                    self._settings.log(_summary(event))
                    return JSONResponse(shape.whole(event))
        return Response(status_code=_CLIENT_LEFT)

    async def _stream(self, job: Job, shape: Shape) -> AsyncIterator[str]:
        try:
            for chunk in shape.first():
                yield _event(chunk)
            async for event in job.events():
                if isinstance(event, str):
                    yield _event(shape.piece(event))
                    continue
                self._settings.log(_summary(event))
                for chunk in shape.last(event):
                    yield _event(chunk)
            yield "data: [DONE]\n\n"
        except ClientLeft:
            return
        except ApiError as error:  # too late for a status
            yield _event(error.to_dict())
        except Exception as error:
            self._settings.log(f"failed: {error!r}")
            yield _event(internal(error).to_dict())

    def _watch(self, request: Request, job: Job) -> None:
        """Cancel the job when its client leaves."""

        async def watch() -> None:
            # Comes at the latest when the response is complete; then there is nothing to cancel.
            while (await request.receive())["type"] != "http.disconnect":
                pass
            if job.cancel(ClientLeft()):
                self._settings.log("the client left")

        watcher = asyncio.create_task(watch())
        self._watchers.add(watcher)  # asyncio itself holds tasks weakly
        watcher.add_done_callback(self._watchers.discard)

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        self._settings.log(f"{error.status}: {error}")
        return JSONResponse(error.to_dict(), error.status)

    async def no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(
            ApiError(said).to_dict(), error.status_code, headers=dict(error.headers or {})
        )

    async def left(self, request: Request, error: Exception) -> Response:
        """Before all of the body had come."""
        self._settings.log("the client left")
        return Response(status_code=_CLIENT_LEFT)

    async def failed(self, request: Request, error: Exception) -> Response:
        self._settings.log(f"failed: {error!r}")
        return JSONResponse(internal(error).to_dict(), 500)


async def _body(request: Request) -> bytes:
    """Raises ApiError for another type, which pages of other sites may send, and for too much."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(f"Content-Type: expected application/json, got {kind!r}", status=415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ApiError(f"body: expected at most {_MOST_BYTES} bytes, got more", status=413)
    return bytes(body)


def _event(data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


def _summary(completion: Completion) -> str:
    """What was read and generated, and how fast, in one line."""
    speed = completion.tokens_per_second
    parts = [
        f"prompt {completion.prompt_tokens:,} tokens",
        f"cached {completion.cached_tokens:,}",
        f"computed {completion.report.prompt_computed_percent:.0f} %",
        f"first token {completion.ttft_seconds:.2f} s",
        f"{completion.new_tokens:,} new" + (f", {speed:.1f} tokens/s" if speed else ""),
    ]
    if completion.waited_seconds >= 0.01:
        parts.append(f"waited {completion.waited_seconds:.2f} s")
    return ", ".join(parts)
