"""`lazyllm-ext serve`: an OpenAI-compatible endpoint of one model."""

from __future__ import annotations

import socket
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lazyllm_ext.schedule import PruningSchedule

from . import options
from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device

if TYPE_CHECKING:
    from lazyllm_ext.serve import Engine
    from lazyllm_ext.serve.app import Settings

_GRACE_SECONDS = 5  # that clients have to read their responses when the server shall stop

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")]
CacheMemory = Annotated[
    float,
    typer.Option(
        min=0,
        max=2**20,  # GiB times 2**30 stays finite
        callback=options.finite,
        help="GiB for the caches of conversations; 0: keep none.",
    ),
]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="Longest answer in a chat whose request names no max_tokens.")
]
MaxQueue = Annotated[
    int, typer.Option(min=0, help="Requests that may wait for the one that is answered.")
]
ModelName = Annotated[
    str | None, typer.Option(help="Name in requests; by default that of the folder.")
]
ApiKey = Annotated[
    str | None, typer.Option(help="What clients have to send.", envvar="LAZYLLM_API_KEY")
]


def serve(
    model: options.Folder,
    schedule: options.Schedule = "balanced",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    cache_memory: CacheMemory = 1.0,
    max_tokens: MaxTokens = 1024,
    max_queue: MaxQueue = 16,
    model_name: ModelName = None,
    api_key: ApiKey = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> int:
    """Answer OpenAI's clients over HTTP: chats and completions, streamed or whole."""
    from lazyllm_ext import apply
    from lazyllm_ext.hf import settle_defaults
    from lazyllm_ext.serve import Engine, require_server

    with as_input_error(ValueError):
        require_server()
        pruning = PruningSchedule.load(schedule)
    from lazyllm_ext.serve.app import Settings  # imports what is required

    device = pick_device(device)
    folder = find_folder(model, quiet=False)
    with listen(host, port) as listener:  # before minutes of loading
        tokenizer, loaded = load(folder, dtype, device)
        with as_input_error(ValueError, TypeError):
            settled = settle_defaults(loaded, own_sampling=False)
            lazy = apply(loaded, pruning)
            engine = Engine(
                lazy,
                tokenizer,
                max_tokens=max_tokens,
                cache_bytes=int(cache_memory * 2**30),
                stop=settled.stop_strings,
            )
        settings = Settings(
            model_name or folder.name,
            max_queue,
            api_key or None,
            host=host if _is_local(listener) and not api_key else None,
            log=_log,
        )
        name = lazy.schedule.name or schedule
        about = f"schedule {name}, caches of up to {cache_memory:g} GiB"
        _run(engine, settings, listener, about, settled.sentence())
    return 0


def _run(
    engine: Engine, settings: Settings, listener: socket.socket, about: str, unused: str | None
) -> None:
    """Answer until the server is interrupted, which is how it is meant to end."""
    from lazyllm_ext.serve.app import make_app

    server = make_server(make_app(engine, settings))
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    _say(f"{url}  model {settings.name}, {about}; Ctrl-C ends it")
    if not _is_local(listener) and not settings.api_key:
        _say("Whoever reaches this address may use it: no --api-key.", style="yellow")
    if unused is not None:
        _say(unused, style="yellow")
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    _say("stopped")


def _is_local(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ip_address(listener.getsockname()[0]).is_loopback


def _log(line: str) -> None:
    _say(f"{datetime.now():%H:%M:%S}  {line}")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Not the end of the program, as rich has it."""


def _say(line: str, style: str | None = None) -> None:
    """A line on standard error, as it is; where nobody can read it, answers go on without."""
    with suppress(OSError):
        console = _Console(stderr=True, highlight=False)
        console.print(line, style=style, markup=False, soft_wrap=True)


def make_server(app: Any) -> Any:
    """A uvicorn server of an application, which says nothing by itself but errors."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await app.state.queue.close()  # first: uvicorn waits for responses to end
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        lifespan="off",  # the application has none, and a second Ctrl-C would end it with an error
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
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
