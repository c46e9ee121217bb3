"""Commands, options and exit statuses. Whatever takes long to import is imported by a command."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import bench_options as measured
from . import model_options as options
from . import serve_options as served
from .errors import CommandError, as_input_error

FORMATS = ("torchscript", "aoti")

app = typer.Typer(
    name="lazyllm-ext",
    help="LazyLLM: long prompts computed sooner, by dropping unimportant tokens layer by layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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


@app.callback()
def _commands() -> None:
    """LazyLLM: long prompts computed sooner, by dropping unimportant tokens layer by layer."""


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Folder of a transformers model, or 'demo'.")] = "demo",
    prompt: Annotated[str | None, typer.Option(help="The prompt itself.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Text file with the prompt; standard input if neither.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Comes after the prompt, in a paragraph of its own.")
    ] = None,
    schedule: options.Schedule = "balanced",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run the dense transformers model as well.")
    ] = False,
    json: options.Json = False,
    chat: Annotated[
        bool | None,
        typer.Option(help="Use the chat template; by default if the model has one."),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token; above: sampling.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
) -> int:
    """Answer a prompt, and show what was computed for it."""
    from . import generate as command
    from .prompt import read_prompt

    if max_new_tokens < 1:
        raise CommandError(f"--max-new-tokens: expected at least 1, got {max_new_tokens}")
    if not 0 <= temperature < math.inf:
        raise CommandError(f"--temperature: expected 0 or more, got {temperature}")
    if seed is not None and temperature == 0:
        raise CommandError("--seed: expected --temperature above 0 with it, got greedy search")
    if seed is not None and not 0 <= seed < 2**63:
        raise CommandError(f"--seed: expected a number from 0 to 2**63 - 1, got {seed}")
    request = command.Request(
        model=model,
        text=read_prompt(prompt, prompt_file, question),
        schedule=schedule,
        max_new_tokens=max_new_tokens,
        compare=compare,
        json=json,
        chat=chat,
        dtype=dtype,
        device=device,
        temperature=temperature,
        seed=seed,
    )
    return command.generate(request)


@app.command(name="eval")
def evaluate(
    model: options.Folder,
    output: Annotated[
        Path, typer.Option(help="Folder for records and reports; goes on with what is in it.")
    ],
    tasks: Annotated[
        list[Path] | None,
        typer.Option(help="JSON lines, or a folder of *.jsonl; may be repeated."),
    ] = None,
    longbench: Annotated[
        Path | None, typer.Option(help="Instead of --tasks: the folder of LongBench's *.jsonl.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(help="Of --longbench only these, commas between.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt of --longbench in tokens, without chat template; longer ones lose "
            "their middle. By default what the model's context holds."
        ),
    ] = None,
    contenders: Annotated[
        str,
        typer.Option(
            help="With commas between: dense, a schedule (a name, a JSON file, or a folder with "
            "one for each task or category), "
            "norevive:SCHEDULE, random:SCHEDULE, static:KEEP, compress:KEEP."
        ),
    ] = "dense,balanced",
    lengths: Annotated[
        str | None, typer.Option(help="Only items of these target_tokens, commas between.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many items of each task and length.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Contender that the others are compared with; dense if it runs."),
    ] = None,
    page: Annotated[
        str | None, typer.Option(help="Id of an item to write as a page: which tokens were kept.")
    ] = None,
    chat: options.Chat = True,
    answer_prefix: Annotated[
        bool,
        typer.Option(
            "--answer-prefix", help="Append the items' answer_prefix where no template is used."
        ),
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> int:
    """Compare schedules and baselines on tasks: scores, speed, and how near they are to dense."""
    from . import evaluate as command

    if limit is not None and limit < 1:
        raise CommandError(f"--limit: expected at least 1, got {limit}")
    if bool(tasks) == bool(longbench):
        raise CommandError(
            f"--tasks, --longbench: expected one of them, got {'both' if tasks else 'neither'}"
        )
    for option, value in (("--datasets", datasets), ("--max-length", max_length)):
        if value is not None and not longbench:
            raise CommandError(f"{option}: expected --longbench with it, got --tasks")
    if max_length is not None and max_length < 2:
        raise CommandError(f"--max-length: expected at least 2, got {max_length}")
    request = command.Request(
        model=model,
        tasks=tasks or [],
        longbench=longbench,
        datasets=[] if datasets is None else [name.strip() for name in datasets.split(",")],
        max_length=max_length,
        contenders=contenders.split(","),
        lengths=_whole_numbers("--lengths", lengths),
        limit=limit,
        output=output,
        against=against,
        page=page,
        chat=chat,
        answer_prefix=answer_prefix,
        dtype=dtype,
        device=device,
    )
    return command.evaluate(request)


def _whole_numbers(option: str, text: str | None) -> list[int]:
    """Numbers with commas between; none for None."""
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        expected = "whole numbers with commas between"
        raise CommandError(f"{option}: expected {expected}, got {text!r}") from None


@app.command()
def bench(
    model: options.Folder,
    prompt_tokens: Annotated[
        str, typer.Option(help="Length of the prompt; several with commas show how it scales.")
    ] = "2048",
    new_tokens: measured.NewTokens = 33,
    rounds: measured.Rounds = "3",
    dtype: measured.Dtype = "float32",
    device: options.Device = "auto",
    schedules: measured.Schedules = "dense,balanced,fast",
    compiled: measured.Compiled = False,
    memory: measured.Memory = True,
    json: options.Json = False,
    output: measured.Output = None,
) -> int:
    """Measure a model under transformers and under every schedule, on this machine."""
    from . import bench as command

    request = command.make_request(
        model, prompt_tokens, rounds, schedules, new_tokens=new_tokens, dtype=dtype,
        device=device, compiled=compiled, memory=memory,
    )  # fmt: skip
    return command.bench(request, output, json)


@app.command()
def tune(
    model: options.Folder,
    prompts: Annotated[
        Path,
        typer.Option(
            help="JSON lines with `prompt` and maybe `chat`, or a folder of such files; 10 to 50 "
            "prompts are enough."
        ),
    ],
    bound: Annotated[
        float, typer.Option(help="Largest mean KL to the dense model's first tokens, in nats.")
    ] = 0.05,
    agreement: Annotated[
        float | None, typer.Option(help="Smallest part of tokens that are the dense model's, 0-1.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            help="Where the schedule is written; a name that does not end in .json is a folder, "
            "which gets one for each file of prompts."
        ),
    ] = Path("schedule.json"),
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.md, report.json and plots.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.")] = None,
    new_tokens: Annotated[
        int, typer.Option(help="Tokens of each dense continuation that are compared.")
    ] = 16,
    boundaries: Annotated[int, typer.Option(help="Most boundaries, 1 to 3.")] = 2,
    runs: Annotated[int, typer.Option(help="Most schedules that are run.")] = 40,
    chat: options.Chat = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> int:
    """Find the cheapest schedule that stays near the dense model on your own prompts."""
    from lazyllm_ext.lab.tune import Wish

    from . import tune as command

    if limit is not None and limit < 2:
        raise CommandError(f"--limit: expected at least 2, got {limit}")
    with as_input_error(ValueError):
        wish = Wish(bound, agreement, new_tokens, boundaries, runs)
    request = command.Request(
        model=model,
        prompts=prompts,
        wish=wish,
        output=output,
        report=report,
        limit=limit,
        chat=chat,
        dtype=dtype,
        device=device,
    )
    return command.run(request)


@app.command()
def export(
    model: options.Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    schedule: options.Schedule = "balanced",
    format: Annotated[
        str, typer.Option(help="torchscript, or aoti: the decoding step compiled too.")
    ] = "torchscript",
    dtype: options.Dtype = "auto",
    device: options.Device = "cpu",
    max_tokens: Annotated[
        int, typer.Option(help="Of --format aoti: longest context of the compiled step.")
    ] = 4096,
    json: options.Json = False,
) -> int:
    """Write a model with its schedule as a file that runs without Python."""
    from . import export as command

    if max_tokens < 1:
        raise CommandError(f"--max-tokens: expected at least 1, got {max_tokens}")
    if format not in FORMATS:
        raise CommandError(f"--format: expected one of {', '.join(FORMATS)}, got {format!r}")
    request = command.Request(model, schedule, format, output, dtype, device, max_tokens, json)
    return command.export(request)


@app.command()
def serve(
    model: options.Folder,
    schedule: options.Schedule = "balanced",
    host: served.Host = "127.0.0.1",
    port: served.Port = 8000,
    cache_memory: served.CacheMemory = 1.0,
    max_tokens: served.MaxTokens = 1024,
    max_queue: served.MaxQueue = 16,
    model_name: served.ModelName = None,
    api_key: served.ApiKey = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> int:
    """Answer OpenAI's clients over HTTP: chats and completions, streamed or whole."""
    from . import serve as command

    request = command.Request(
        model=model, schedule=schedule, host=host, port=port, cache_memory=cache_memory,
        max_tokens=max_tokens, max_queue=max_queue, model_name=model_name, api_key=api_key,
        dtype=dtype, device=device,
    )  # fmt: skip
    return command.serve(request)


@app.command()
def info(
    json: options.Json = False,
) -> int:
    """Show versions, the instruction set in use, CUDA architectures, kernels and schedules."""
    from . import info as command

    command.show(command.collect(), json)
    return 0
