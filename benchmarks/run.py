"""The benchmark driver: what is measured, and where results go.

    python benchmarks/run.py operators
    python benchmarks/run.py model --model FOLDER --prompt-tokens 4096
    python benchmarks/run.py batch --model FOLDER

Each prints a table and writes benchmarks/results/NAME.json and NAME.md. Timings are medians of
rounds in which all contenders run in turn; quote the ratios, not the seconds.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import machine
import typer
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[Path, typer.Option(help="A transformers model folder.")]
Rounds = Annotated[int, typer.Option(help="Rounds that count; one more warms up.")]
Name = Annotated[str, typer.Option(help="Name of the result files.")]


def save(name: str, command: str, sections: dict[str, Any], tables: list[Table]) -> None:
    """Print the tables; write the JSON, and the same tables as Markdown."""
    console = Console()
    for table in tables:
        console.print(table)
    RESULTS.mkdir(exist_ok=True)
    content = {"command": command, "machine": machine.describe(), **sections}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {name}", "", f"`{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in machine.describe().items()]
    for table in tables:
        lines += ["", f"## {table.title}", "", *markdown(table)]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"wrote {RESULTS / name}.json and .md")


def markdown(table: Table) -> list[str]:
    """A rich table as Markdown lines."""
    columns = [list(column.cells) for column in table.columns]
    head = "| " + " | ".join(str(column.header) for column in table.columns) + " |"
    rows = [
        "| " + " | ".join(str(cell) for cell in row) + " |" for row in zip(*columns, strict=True)
    ]
    return [head, "|" + " --- |" * len(columns), *rows]


def table_of(title: str, header: list[str], rows: list[list[str]]) -> Table:
    """A rich table from plain strings."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    return table


@app.command("model")
def model_command(
    model: Model,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt.")] = 4096,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode after it.")] = 65,
    rounds: Rounds = 5,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    schedules: Annotated[str, typer.Option(help="Comma-separated.")] = "dense,paper,balanced,fast",
    name: Name = "model",
) -> None:
    """TTFT, decoding, share of scoring, bytes: transformers beside every schedule."""
    from model import Bench, shares, speed, stored_bytes

    ours = schedules.split(",")
    bench = Bench(str(model), dtype)
    measured = speed(bench, prompt_tokens, new_tokens, rounds, ours)
    share = shares(bench, prompt_tokens, ours)
    stored = stored_bytes(bench, prompt_tokens, 64, ours)
    rows = [
        [
            key,
            f"{row['ttft_s']['median']:.2f}",
            f"{row['ttft_transformers_over_this']:.2f}",
            f"{row['of_ideal']:.2f}" if "of_ideal" in row else "",
            f"{row['decode_s_per_token']['median'] * 1e3:.1f}",
            f"{row['decode_transformers_over_this']:.2f}",
            f"{share[key]['share'] * 100:.2f}" if key in share else "",
            f"{stored[key]['ratio']:.3f}" if key in stored else "",
        ]
        for key, row in measured["rows"].items()
    ]
    header = [
        "",
        "TTFT s",
        "transformers ÷ this",
        "of the ideal",
        "ms per token",
        "transformers ÷ this, decoding",
        "scoring % of TTFT",
        "bytes ÷ needed",
    ]
    title = f"{model.name}, {dtype}, {prompt_tokens} tokens"
    command = (
        f"python benchmarks/run.py model --model {model.name} --prompt-tokens {prompt_tokens} "
        f"--new-tokens {new_tokens} --rounds {rounds} --dtype {dtype} --schedules {schedules}"
    )
    sections = {
        "model": model.name,
        "dtype": dtype,
        "speed": measured,
        "share": share,
        "bytes": stored,
    }
    save(name, command, sections, [table_of(title, header, rows)])


@app.command("batch")
def batch_command(
    model: Model,
    shortest: int = 512,
    longest: int = 4096,
    size: int = 8,
    rounds: Rounds = 5,
    dtype: str = "float32",
    name: Name = "batch",
) -> None:
    """One left-padded batch of prompts of different lengths, schedule dense."""
    from model import Bench, padded_batch

    result = padded_batch(Bench(str(model), dtype), shortest, longest, size, rounds)
    rows = [
        [key, f"{value['median']:.2f}", f"{value['min']:.2f}", f"{value['max']:.2f}"]
        for key, value in result["seconds"].items()
    ]
    rows.append(["transformers ÷ dense", f"{result['transformers_over_dense']:.2f}", "", ""])
    title = f"{model.name}, {dtype}, {size} prompts of {shortest} to {longest} tokens, first token"
    command = (
        f"python benchmarks/run.py batch --model {model.name} --shortest {shortest} "
        f"--longest {longest} --size {size} --rounds {rounds} --dtype {dtype}"
    )
    table = table_of(title, ["", "median s", "min", "max"], rows)
    save(name, command, {"model": model.name, "dtype": dtype, "batch": result}, [table])


@app.command("operators")
def operators_command(rounds: Rounds = 15, name: Name = "operators") -> None:
    """Every operator, verified against its reference, beside the PyTorch way of doing it."""
    from operators import measure

    results = measure(rounds)
    rows = [
        [
            row["operator"],
            row["case"],
            f"{row['ms']:.3f}",
            f"{row['pytorch_ms']:.3f}",
            f"{row['pytorch_ms'] / row['ms']:.2f}",
            row["rate"],
        ]
        for row in results
    ]
    header = ["operator", "case", "ms", "PyTorch ms", "PyTorch ÷ ours", "achieved"]
    command = f"python benchmarks/run.py operators --rounds {rounds}"
    save(name, command, {"operators": results}, [table_of("operators", header, rows)])


if __name__ == "__main__":
    app()
