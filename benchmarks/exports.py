"""Exports beside `apply`: the same greedy tokens, in Python and from the C++ program; times."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import lazyllm_ext
from lazyllm_ext import export
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.lab.bench import BenchError
from lazyllm_ext.lab.bench.model import Model
from lazyllm_ext.lab.tools.clock import TokenClock
from lazyllm_ext.lab.tools.tables import table_of
from lazyllm_ext.lab.tools.timing import interleave, ratio, seconds, spread
from lazyllm_ext.schedule import PruningSchedule

_TIMES = re.compile(r"first token after ([\d.]+) s, then ([\d.]+) tokens/s")
_SECOND_TURN = 32  # tokens of it


@dataclass(frozen=True)
class TimedAnswer:
    """Greedy tokens, the seconds until the first and for each after it."""

    tokens: list[int]
    ttft: float
    per_token: float


# Answers the turns of one conversation, each given by its new ids.
Contender = Callable[[list[list[int]]], list[TimedAnswer]]


def exports(
    model: Model,
    schedule: str,
    max_revive: int,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    generate: Path | None,
) -> dict[str, Any]:
    """Time to the first token and decoding of `apply`, of both formats, and of `generate` on both.

    The schedule revives at most `max_revive` tokens a step and boundary, as a compiled step must.
    Two turns are verified, and the first is timed, `rounds` times.

    Raises:
        BenchError: an export answers other tokens than `apply`.
    """
    name = getattr(model.model.config, "name_or_path", None)
    bounded = replace(PruningSchedule.load(schedule).for_model(name), max_revive=max_revive)
    text = model.prompt(prompt_tokens + _SECOND_TURN).tolist()
    turns = [text[:prompt_tokens], text[prompt_tokens:]]
    weights = sum(p.nbytes for p in model.model.parameters())
    files: dict[str, Any] = {}
    contenders: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, write in (("torchscript", export.torchscript), ("aoti", export.aoti)):
            path = Path(folder) / f"{kind}.pt"
            say = partial(_say, f"{schedule}: {kind}")
            took = seconds(partial(write, model.model, bounded, path, say=say))()
            files[kind] = {
                "seconds": took,
                "bytes": path.stat().st_size,
                "bytes_over_weights": path.stat().st_size / weights,
            }
            contenders[kind] = _in_python(export.load(path), new_tokens)
            if generate is not None:
                contenders[f"{kind}, C++"] = _in_cpp(generate, path, new_tokens)
        with lazyllm_ext.apply(model.model, bounded) as lazy:
            apply = _with_apply(model, lazy, new_tokens)
            expected = [answer.tokens for answer in apply(turns)]
            for contender, run in contenders.items():
                _verify(f"{schedule}: {contender}", run, turns, expected)
            timed = {
                contender: partial(run, turns[:1])
                for contender, run in {"apply": apply, **contenders}.items()
            }
            answers = interleave(timed, rounds, warmup=0, title=schedule if rounds else "")
    return {
        "schedule": bounded.to_dict(),
        "prompt_tokens": prompt_tokens,
        "verified": {
            "read": [len(turn) for turn in turns],
            "equal": [len(tokens) for tokens in expected],
            "by": list(contenders),
        },
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "files": files,
        "rows": _rows(answers) if rounds else {},
    }


def _verify(what: str, run: Contender, turns: list[list[int]], expected: list[list[int]]) -> None:
    _say(what, "verifying")
    got = [answer.tokens for answer in run(turns)]
    if got != expected:
        raise BenchError(f"{what}: expected apply's tokens {expected}, got {got}")


def _rows(answers: dict[str, list[list[TimedAnswer]]]) -> dict[str, Any]:
    """What each contender took, and `apply` over it; in each round one turn."""
    rows: dict[str, Any] = {contender: {} for contender in answers}
    for what in ("ttft", "per_token"):
        times = {
            contender: [getattr(answer, what) for (answer,) in given]
            for contender, given in answers.items()
        }
        for contender, row in rows.items():
            row[f"{what}_s"] = spread(times[contender])
            row[f"{what}_apply_over_this"] = ratio(times["apply"], times[contender])
    return rows


def tables(title: str, results: dict[str, dict[str, Any]]) -> list[Table]:
    """What is shown of the results of `exports`, by schedule."""
    verified, times, files = [], [], []
    for schedule, result in results.items():
        counts = [" + ".join(map(str, result["verified"][key])) for key in ("read", "equal")]
        verified.append([schedule, *counts, "; ".join(result["verified"]["by"])])
        for contender, row in result["rows"].items():
            ttft, per_token = (row[f"{what}_s"]["median"] for what in ("ttft", "per_token"))
            over = [f"{row[f'{what}_apply_over_this']:.2f}" for what in ("ttft", "per_token")]
            line = [f"{ttft:.3f}", over[0], f"{per_token * 1e3:.2f}", over[1]]
            times.append([schedule, contender, *line])
        for kind, file in result["files"].items():
            sizes = [f"{file['bytes'] / 1e6:.1f}", f"{file['bytes_over_weights']:.3f}"]
            files.append([schedule, kind, *sizes, f"{file['seconds']:.1f}"])
    named = [
        (
            f"{title}: greedy tokens that equal apply's, turn by turn",
            ["schedule", "tokens read", "tokens equal", "from"],
            verified,
        ),
        (
            f"{title}: times of the first turn; medians, of times and of the rounds' ratios",
            ["schedule", "", "TTFT s", "apply ÷ this", "ms per token", "apply ÷ this"],
            times,
        ),
        ("files", ["schedule", "format", "MB", "÷ weights", "exported in s"], files),
    ]
    return [table_of(*table) for table in named if table[2]]


def _say(what: str, stage: str) -> None:
    print(f"{what}: {stage}", file=sys.stderr, flush=True)


def _with_apply(model: Model, lazy: lazyllm_ext.Lazy, new_tokens: int) -> Contender:
    def run(turns: list[list[int]]) -> list[TimedAnswer]:
        ids, answers = torch.empty(1, 0, dtype=torch.int64), []
        cache = lazy.new_cache()
        for turn in turns:
            ids = torch.cat([ids, torch.tensor([turn])], dim=1)
            clock, known = TokenClock(), ids.size(1)
            ids = model.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
                **{CACHE_NAME: cache},
            )
            answers.append(_answer(ids[0, known:].tolist(), clock))
        return answers

    return run


def _in_python(exported: export.Exported, new_tokens: int) -> Contender:
    def answer(turn: list[int]) -> TimedAnswer:
        clock, tokens = TokenClock(), []
        for token in exported.generate(turn, new_tokens):
            tokens.append(token)
            clock.tick()
        return _answer(tokens, clock)

    def run(turns: list[list[int]]) -> list[TimedAnswer]:
        exported.reset()
        return [answer(turn) for turn in turns]

    return run


def _answer(tokens: list[int], clock: TokenClock) -> TimedAnswer:
    if len(clock.times) < 2:
        raise BenchError("exports: the model ends its answer at once; expected a longer prompt")
    return TimedAnswer(tokens, clock.ttft, clock.per_token)


def _in_cpp(program: Path, path: Path, new_tokens: int) -> Contender:
    command = [str(program), str(path), str(new_tokens), str(torch.get_num_threads())]

    def run(turns: list[list[int]]) -> list[TimedAnswer]:
        lines = "".join(" ".join(map(str, turn)) + "\n" for turn in turns)
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        answers = done.stdout.splitlines()
        times = _TIMES.findall(done.stderr)
        if done.returncode != 0 or not len(answers) == len(times) == len(turns):
            raise BenchError(f"{program}: {done.stderr.strip()}")
        return [
            TimedAnswer([int(word) for word in answer.split()], float(first), 1 / float(per_second))
            for answer, (first, per_second) in zip(answers, times, strict=True)
        ]

    return run
