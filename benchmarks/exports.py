"""Exports beside `apply`: the same greedy tokens, in Python and from the C++ program."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lazyllm_ext
from lazyllm_ext import export
from lazyllm_ext.bench import BenchError
from lazyllm_ext.bench.model import Clock, Model
from lazyllm_ext.bench.timing import interleave, ratio, spread
from lazyllm_ext.schedule import PruningSchedule

_TIMES = re.compile(r"first token after ([\d.]+) s, then ([\d.]+) tokens/s")


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the seconds until the first and for each after it."""

    tokens: list[int]
    ttft: float
    per_token: float


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

    Raises:
        BenchError: an export answers other tokens than `apply`.
    """
    name = getattr(model.model.config, "name_or_path", None)
    bounded = replace(PruningSchedule.load(schedule).for_model(name), max_revive=max_revive)
    prompt = model.prompt(prompt_tokens)
    weights = sum(p.nbytes for p in model.model.parameters())
    files: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        contenders = {"apply": lambda: _with_apply(model, prompt, new_tokens)}
        for kind, write in (("torchscript", export.torchscript), ("aoti", export.aoti)):
            path = Path(folder) / f"{kind}.pt"
            began = time.perf_counter()
            write(model.model, bounded, path, say=partial(_say, kind))
            files[kind] = {
                "seconds": time.perf_counter() - began,
                "bytes": path.stat().st_size,
                "bytes_over_weights": path.stat().st_size / weights,
            }
            contenders[kind] = _in_python(export.load(path), prompt.tolist(), new_tokens)
            if generate is not None:
                contenders[f"{kind}, C++"] = _in_cpp(generate, path, prompt.tolist(), new_tokens)
        with lazyllm_ext.apply(model.model, bounded):
            expected = contenders["apply"]().tokens
            for contender in list(contenders)[1:]:
                _say(contender, "verifying")
                got = contenders[contender]().tokens
                if got != expected:
                    raise BenchError(f"{contender}: expected apply's tokens {expected}, got {got}")
            answers = interleave(contenders, rounds, warmup=0, title="exports")
    rows = {}
    for contender, given in answers.items():
        times = {"ttft": [a.ttft for a in given], "per_token": [a.per_token for a in given]}
        rows[contender] = {
            **{f"{what}_s": spread(values) for what, values in times.items()},
            **{
                f"{what}_apply_over_this": ratio(
                    [getattr(a, what) for a in answers["apply"]], values
                )
                for what, values in times.items()
            },
        }
    return {
        "schedule": bounded.to_dict(),
        "prompt_tokens": prompt_tokens,
        "tokens": len(expected),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "files": files,
        "rows": rows,
    }


def _say(what: str, stage: str) -> None:
    print(f"{what}: {stage}", file=sys.stderr, flush=True)


def _with_apply(model: Model, prompt: torch.Tensor, new_tokens: int) -> Answer:
    clock = Clock()
    output = model.model.generate(
        prompt[None], max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, streamer=clock
    )
    return _answer(output[0, len(prompt) :].tolist(), clock.times)


def _in_python(
    exported: export.Exported, prompt: list[int], new_tokens: int
) -> Callable[[], Answer]:
    def run() -> Answer:
        exported.reset()
        begin, tokens, times = time.perf_counter(), [], []
        for token in exported.generate(prompt, new_tokens):
            tokens.append(token)
            times.append(time.perf_counter() - begin)
        return _answer(tokens, times)

    return run


def _answer(tokens: list[int], times: list[float]) -> Answer:
    if len(times) < 2:
        raise BenchError("exports: the model ends its answer at once; expected a longer prompt")
    return Answer(tokens, times[0], (times[-1] - times[0]) / (len(times) - 1))


def _in_cpp(program: Path, path: Path, prompt: list[int], new_tokens: int) -> Callable[[], Answer]:
    command = [str(program), str(path), str(new_tokens), str(torch.get_num_threads())]
    line = " ".join(map(str, prompt)) + "\n"

    def run() -> Answer:
        done = subprocess.run(command, input=line, capture_output=True, text=True, check=False)
        found = _TIMES.search(done.stderr)
        if done.returncode != 0 or found is None:
            raise BenchError(f"{program}: {done.stderr.strip()}")
        tokens = [int(word) for word in done.stdout.split()]
        return Answer(tokens, float(found[1]), 1 / float(found[2]))

    return run
