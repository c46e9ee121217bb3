"""The application: its commands, and the exit statuses of their errors.

Each command is a function in a module of its own, which imports what takes long when it is called.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from itertools import pairwise
from typing import Any

import typer

from .bench import bench
from .errors import CommandError
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .serve import serve
from .tune import tune

app = typer.Typer(
    name="lazyllm-ext",
    help="LazyLLM: long prompts computed sooner, by dropping unimportant tokens layer by layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(tune)
app.command()(export)
app.command()(serve)
app.command()(info)


def main() -> None:
    """Run the console script. Exit status: 2 for bad input, 130 for an interrupt, else 1 or 0."""
    for stream in (sys.stdout, sys.stderr):  # a text or a name that the locale cannot say is shown
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        sys.exit(_fail("standard output: expected an open one, got a closed one", 1))
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        status = status or _fail(_not_written(error), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is written at the very end
    sys.exit(status)


def run(arguments: list[str], commands: typer.Typer = app, program: str = "lazyllm-ext") -> int:
    """Run a command line of these commands and return its exit status."""
    try:
        for argument in arguments:
            _check_utf8(argument)
        status = commands(args=arguments, prog_name=program, standalone_mode=False)
    except CommandError as error:
        return _fail(str(error), error.status, program)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, program)
    except OSError as error:
        if error.filename is None and error.errno in _OF_OUTPUT:
            return _fail(_not_written(error), 1, program)
        raise
    except Exception as error:
        # typer's own errors about options; their class has moved between releases.
        if not hasattr(error, "format_message"):
            raise
        return _fail(_with_value(error, arguments), getattr(error, "exit_code", 2), program)
    if status == 130:  # what typer makes of an interrupt
        return _fail("interrupted", 130, program)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int, program: str = "lazyllm-ext") -> int:
    if message:  # typer has shown the help where there is none
        print(f"{program}: {message}", file=sys.stderr)
    return status


# A full disk, a pipe that nobody reads any more, and others of standard output.
_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EIO, errno.EFBIG)


def _not_written(error: OSError) -> str:
    return f"standard output: cannot be written: {error.strerror}"


def _check_utf8(argument: str) -> None:
    """Other bytes than UTF-8 fit in no prompt, report or schedule."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        shown = argument.encode("utf-8", "surrogateescape")
        raise CommandError(f"command line: expected UTF-8 text, got {shown!r}") from None


def _with_value(error: Any, arguments: list[str]) -> str:
    """typer's sentence, with the value that the option got where it does not say it."""
    message = str(error.format_message())
    names = getattr(getattr(error, "param", None), "opts", ())
    given = [value for option, value in pairwise(arguments) if option in names]
    joined = [argument.partition("=") for argument in arguments]
    given += [value for option, sign, value in joined if sign and option in names]
    words = message.replace("'", " ").split()
    if not given or "Invalid value" not in message or given[-1] in words:
        return message
    return f"{message.rstrip('.')}, got {given[-1]!r}"
