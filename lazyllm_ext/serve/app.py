"""The FastAPI application: routes, errors, streams, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lazyllm_ext.json_input import shown

from .admission import Body, check_host, check_key
from .engine import ClientLeft, Completion, Engine, GenerationRequest
from .errors import ApiError, check_model, internal
from .parameters import ChatParameters, CompletionParameters, read_parameters
from .queue import Job, RequestQueue
from .shapes import Shape

_MOST_BYTES = 64 << 20  # of a request, whatever the model's context
# Of a request's bytes: so many are read at once, and more when it has a place in the queue.
_SMALL_BYTES = 64 << 10
# Longer requests are made ready one at a time: it takes a hundred times their bytes.
_LONG_BYTES = 1 << 20
# What clients have to know beside an error.
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}}
_CLIENT_LEFT = 499  # what servers log for it; nobody reads the response


@dataclass(frozen=True)
class Settings:
    """What the server is told beside the model."""

    name: str  # the model's name in requests and responses
    max_queue: int = 16  # how many requests may wait
    api_key: str | None = None  # what clients have to send; None for no check
    host: str | None = None  # the only name in requests beside localhost; None for any
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
        self._most_bytes = min(_MOST_BYTES, engine.most_bytes or _MOST_BYTES)
        self._long = asyncio.Lock()

    async def health(self, request: Request) -> dict[str, Any]:
        check_host(request, self._settings.host)
        caches = self._engine.caches
        return {
            "status": "ok",
            "model": self._settings.name,
            "requests": len(self.queue),
            "caches": len(caches),
            "cache_bytes": caches.nbytes,
        }

    async def models(self, request: Request) -> dict[str, Any]:
        self._check_client(request)
        return {"object": "list", "data": [self._description()]}

    async def model(self, name: str, request: Request) -> dict[str, Any]:
        self._check_client(request)
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

    def _check_client(self, request: Request) -> None:
        check_host(request, self._settings.host)
        check_key(request, self._settings.api_key)

    async def _respond(self, request: Request, chat: bool) -> Response:
        self._check_client(request)
        self.queue.check_room()
        body = Body(request, self._most_bytes)
        await body.read(until=_SMALL_BYTES)
        with self.queue.reserve():
            parameters, prepared = await self._prepare(await body.read(), chat)
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

    async def _prepare(
        self, body: bytes, chat: bool
    ) -> tuple[ChatParameters | CompletionParameters, GenerationRequest]:
        """Read and tokenize, beside the event loop and with no other request in the way."""
        async with self._long if len(body) > _LONG_BYTES else nullcontext():
            return await asyncio.to_thread(self._read, body, chat)

    def _read(
        self, body: bytes, chat: bool
    ) -> tuple[ChatParameters | CompletionParameters, GenerationRequest]:
        parameters = read_parameters(body, chat=chat, model=self._settings.name)
        prepare: Any = self._engine.chat_request if chat else self._engine.completion_request
        return parameters, prepare(parameters.prompt, parameters.sampling)

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
        return JSONResponse(error.to_dict(), error.status, headers=_HEADERS.get(error.status))

    async def no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Not `request.url`, which is made of what the client says that the host is.
        said = f"{request.method} {shown(request.scope['path'])}: {error.detail}"
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
