"""`lazyllm-ext generate`: one prompt, one answer, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lazyllm_ext.schedule import PruningSchedule

from . import options
from .errors import CommandError, as_input_error
from .loading import find_folder, load, pick_device, settle
from .prompt import encode, read_prompt

if TYPE_CHECKING:
    from lazyllm_ext.hf import Lazy, Progress, Report

    from .generation import Generation, TimedAnswer

ModelFolder = Annotated[str, typer.Option(help="Folder of a transformers model, or 'demo'.")]
Prompt = Annotated[str | None, typer.Option(help="The prompt itself.")]
PromptFile = Annotated[
    Path | None, typer.Option(help="Text file with the prompt; standard input if neither.")
]
Question = Annotated[
    str | None, typer.Option(help="Comes after the prompt, in a paragraph of its own.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Run the dense transformers model as well.")
]
ChatTemplate = Annotated[
    bool | None, typer.Option(help="Use the chat template; by default if the model has one.")
]
Temperature = Annotated[
    float,
    typer.Option(
        min=0,
        callback=options.finite,
        help="0: always the likeliest token; above: sampling.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Makes sampling repeatable.")]


def generate(
    model: ModelFolder = "demo",
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    question: Question = None,
    schedule: options.Schedule = "balanced",
    max_new_tokens: MaxNewTokens = 64,
    compare: Compare = False,
    as_json: options.Json = False,
    chat: ChatTemplate = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    temperature: Temperature = 0.0,
    seed: Seed = None,
) -> int:
    """Answer a prompt, and show what was computed for it."""
    from lazyllm_ext import apply

    from .generation import Generation
    from .generation_report import GenerationReport, show_tables

    if seed is not None and temperature == 0:
        raise CommandError("--seed: expected --temperature above 0 with it, got greedy search")
    text = read_prompt(prompt, prompt_file, question)
    with as_input_error(ValueError):
        pruning = PruningSchedule.load(schedule)
    device = pick_device(device)
    folder = find_folder(model, quiet=as_json)
    tokenizer, loaded = load(folder, dtype, device)
    stops = settle(loaded, greedy=False)
    ids = encode(tokenizer, text, chat).to(device)
    _check_prompt(loaded, ids, max_new_tokens)
    with as_input_error(ValueError, TypeError):
        lazy = apply(loaded, pruning)
    write = (lambda text: None) if as_json else _write
    generation = Generation(loaded, tokenizer, ids, write, max_new_tokens, temperature, seed, stops)
    lazily, computed, dense = _answers(generation, lazy, compare, as_json)
    report = GenerationReport(
        model=folder.name,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        schedule=lazy.schedule.name or schedule,
        computed=computed,
        lazy=lazily,
        dense=dense,
    )
    if as_json:
        print(report.to_json())
    else:
        show_tables(report)
    return 0


def _answers(
    generation: Generation, lazy: Lazy, compare: bool, quiet: bool
) -> tuple[TimedAnswer, Report, TimedAnswer | None]:
    """LazyLLM's answer, what it computed, and the dense model's to compare; all of it streamed."""
    dense = None
    try:
        with lazy:
            if compare:
                generation.warm_up()
            layers, tokens = lazy.decoder.num_layers, generation.ids.size(1)
            with _prefill_bar(layers, tokens, shown=not quiet) as bar:
                lazily = generation.answer(**bar)
            computed = lazy.report()
        if compare:
            generation.write("\n\nThe dense model, for comparison:\n\n")
            generation.warm_up()
            dense = generation.answer()
    except KeyboardInterrupt:
        generation.write("\n")
        so_far = generation.tokens_so_far
        raise CommandError(f"interrupted after {so_far} tokens", status=130) from None
    generation.write("\n\n")
    return lazily, computed, dense


@contextmanager
def _prefill_bar(layers: int, tokens: int, shown: bool) -> Iterator[dict[str, Any]]:
    """A bar over the layers of the prefill; yields what `answer` takes to move it and end it."""
    from rich.progress import BarColumn, TextColumn

    from lazyllm_ext.progress_bar import progress_bar

    columns = (TextColumn("prefill"), BarColumn(), TextColumn("{task.description}"))
    with ExitStack() as stack:
        draw = stack.enter_context(progress_bar(*columns, total=layers, shown=shown))

        def show(done: int, tokens: int) -> None:
            draw(completed=done, description=f"layer {done} of {layers}, {tokens:,} tokens")

        def watch(progress: Progress) -> None:
            show(progress.layers_done, progress.tokens_in_layer)

        show(0, tokens)
        yield {"lazy_progress": watch, "before_first": stack.close}


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _check_prompt(model: Any, ids: Any, new_tokens: int) -> None:
    """Refuse tokens [1, n] that the model does not have, or that leave the answer no room."""
    from lazyllm_ext.hf import check_tokens

    with as_input_error(ValueError):
        check_tokens(model, ids[0].tolist())
    limit, tokens = getattr(model.config, "max_position_embeddings", None), ids.size(1)
    if limit is not None and tokens + new_tokens > limit:
        raise CommandError(
            f"prompt: expected at most {limit} tokens, the model's context, with the answer; got "
            f"{tokens} and an answer of up to {new_tokens} (--max-new-tokens)"
        )
