"""The application: its commands, and the exit statuses of their errors.

Each command is a function in a module of its own, which imports what takes long when it is called.
"""

from __future__ import annotations

import sys

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
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str], commands: typer.Typer = app, program: str = "lazyllm-ext") -> int:
    """Run a command line of these commands and return its exit status."""

    def fail(message: str, status: int) -> int:
        print(f"{program}: {message}", file=sys.stderr)
        return status

    try:
        status = commands(args=arguments, prog_name=program, standalone_mode=False)
    except CommandError as error:
        return fail(str(error), error.status)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)
    except Exception as error:
        # typer's own errors about options; their class has moved between releases.
        if not hasattr(error, "format_message"):
            raise
        return fail(error.format_message(), getattr(error, "exit_code", 2))
    if status == 130:  # what typer makes of an interrupt
        return fail("interrupted", 130)
    return status if isinstance(status, int) else 0
