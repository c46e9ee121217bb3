"""`lazyllm-ext serve`: an OpenAI-compatible endpoint of one model."""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console

import lazyllm_ext
from lazyllm_ext.schedule import PruningSchedule
from lazyllm_ext.serve import Engine, require_server

from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device

_GRACE_SECONDS = 5  # that clients have to read their responses when the server shall stop
_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Request:
    """The command's options, as the user gave them; `cache_memory` in GiB."""

    model: str
    schedule: str
    host: str
    port: int
    cache_memory: float
    max_tokens: int
    max_queue: int
    model_name: str | None
    api_key: str | None
    dtype: str
    device: str


def serve(request: Request) -> int:
    """Run the command until it is interrupted; returns the exit status.

    Raises:
        CommandError: before the server listens, for what does not fit.
    """
    _check(request)
    with as_input_error(ValueError):
        require_server()
        schedule = PruningSchedule.load(request.schedule)
    device = pick_device(request.device)
    folder = find_folder(request.model, quiet=False)
    with listen(request.host, request.port) as listener:  # before minutes of loading
        tokenizer, model = load(folder, request.dtype, device)
        with as_input_error(ValueError, TypeError):
            lazy = lazyllm_ext.apply(model, schedule)
        engine = Engine(
            lazy,
            tokenizer,
            max_tokens=request.max_tokens,
            cache_bytes=int(request.cache_memory * 2**30),
        )
        return _run(request, engine, request.model_name or folder.name, listener)


def _check(request: Request) -> None:
    if not 0 <= request.port < 2**16:
        raise CommandError(f"--port: expected 0 to 65535, got {request.port}")
    if not 0 <= request.cache_memory * 2**30 < math.inf:
        raise CommandError(f"--cache-memory: expected 0 or more, got {request.cache_memory}")
    if request.max_tokens < 1:
        raise CommandError(f"--max-tokens: expected at least 1, got {request.max_tokens}")
    if request.max_queue < 0:
        raise CommandError(f"--max-queue: expected 0 or more, got {request.max_queue}")


def _run(request: Request, engine: Engine, name: str, listener: socket.socket) -> int:
    from lazyllm_ext.serve.app import Settings, make_app

    console = Console(stderr=True, highlight=False)

    def log(line: str) -> None:
        console.print(f"{datetime.now():%H:%M:%S}  {line}", markup=False, soft_wrap=True)

    settings = Settings(name, request.max_queue, request.api_key or None, log)
    server = make_server(make_app(engine, settings))
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    console.print(
        f"{address}  model {name}, schedule {engine.lazy.schedule.name or request.schedule}, "
        f"caches of up to {request.cache_memory:g} GiB; Ctrl-C ends it",
        markup=False,
        soft_wrap=True,
    )
    if request.host not in _LOCAL and not request.api_key:
        console.print("Whoever reaches this address may use it: no --api-key.", style="yellow")
    with suppress(KeyboardInterrupt):  # how it is meant to end
        server.run(sockets=[listener])
    console.print("stopped")
    return 0


def make_server(app: Any) -> Any:
    """A uvicorn server of an application, which says nothing by itself but errors."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await app.state.queue.close()  # first: uvicorn waits for responses to end
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="error", access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket on which connections wait until the server is there.

    Raises:
        CommandError: there is no such address, or it is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandError(f"--host, --port: cannot listen on {host}:{port}: {reason}") from error
