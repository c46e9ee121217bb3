"""The whole model: TTFT, decoding, a padded batch, shares and bytes, beside transformers.

    python benchmarks/run.py model --model FOLDER --prompt-tokens 4096

transformers runs with SDPA attention in the same process, on the same weights and the same real
text. Every generation is greedy. TTFT ends when the first token is there. Before it times, it
verifies: `dense` against transformers on the same prompt, a pruned schedule against the tests'
oracle on a shorter one.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from timing import interleave, spread
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import lazyllm_ext
from lazyllm_ext import state as book
from lazyllm_ext.cost import prefill_operations
from lazyllm_ext.schedule import PruningSchedule

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from helpers import full_attention
from oracle import Oracle

OURS = ("dense", "paper", "balanced", "fast")


class Clock(BaseStreamer):
    """Remembers when each token arrived; the prompt comes first and is not counted."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.times: list[float] = []
        self.prompt = True

    def put(self, value: Tensor) -> None:
        if not self.prompt:
            self.times.append(time.perf_counter() - self.begin)
        self.prompt = False

    def end(self) -> None:
        pass

    @property
    def ttft(self) -> float:
        return self.times[0]

    @property
    def seconds_per_token(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


class Bench:
    """One model, dense and under every schedule."""

    def __init__(self, folder: str, dtype: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        text = (resources.files("lazyllm_ext.demo") / "document.txt").read_text("utf-8")
        self.text = torch.tensor(self.tokenizer(text)["input_ids"])

    def prompt(self, tokens: int, start: int = 0) -> Tensor:
        """[tokens] ids of real text, from `start` on, beginning again at its end."""
        repeats = (start + tokens) // self.text.numel() + 1
        return self.text.repeat(repeats)[start : start + tokens]

    @contextmanager
    def under(self, schedule: str | None) -> Iterator[Any]:
        """The model as it is (None), or under a schedule."""
        if schedule is None:
            yield None
            return
        with lazyllm_ext.apply(self.model, schedule) as lazy:
            yield lazy

    def generate(self, ids: Tensor, new_tokens: int, schedule: str | None) -> Clock:
        """One timed greedy generation of exactly `new_tokens` tokens for [1, n] ids."""
        clock = Clock()
        with self.under(schedule):
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                streamer=clock,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )
        return clock

    def prefill_state(self, ids: Tensor, schedule: str | PruningSchedule) -> tuple[Any, Any]:
        """Decoder and state after a prefill of [n] ids."""
        decoder = lazyllm_ext.LazyDecoder.from_model(self.model, schedule)
        with torch.no_grad():
            hidden = decoder.embed_tokens(ids)
            state = decoder.new_state(1, hidden)
            decoder.step(hidden, torch.arange(ids.numel()), [ids.numel()], state, 1)
        return decoder, state


# Of the largest logit: rounding of two orders of summation, over all layers.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def verify_dense(bench: Bench, ids: Tensor, mask: Tensor) -> None:
    """The last logits of `dense` are transformers', for [B, n] ids and their mask."""
    logits = []
    for schedule in (None, "dense"):
        with bench.under(schedule), torch.no_grad():
            # Positions as generate gives them: the padding is not counted.
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            output = bench.model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
            logits.append(output.logits[:, -1].float())
    expected, got = logits
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE[bench.model.dtype]:
        raise SystemExit(f"dense: logits differ from transformers' by {error:.1e} of the largest")


def verify_pruned(bench: Bench, schedule: str, tokens: int = 384) -> None:
    """In every stage the tokens of the oracle, up to a near tie, and its last logits."""
    ids = bench.prompt(tokens)
    pruned = replace(PruningSchedule.load(schedule), min_tokens=0)
    decoder = lazyllm_ext.LazyDecoder.from_model(bench.model, pruned)
    with torch.no_grad():
        hidden = decoder.embed_tokens(ids)
        state = decoder.new_state(1, hidden)
        logits = decoder.step(hidden, torch.arange(tokens), [tokens], state, 1)
        active = [book.active(state, s + 1, 0).tolist() for s in range(len(decoder.boundaries))]
        oracle = Oracle(bench.model, pruned.resolve(full_attention(bench.model)))
        expected = oracle.step(ids.tolist(), list(range(tokens)), 1, follow=active)
    error = float((logits - expected).abs().max() / expected.abs().max())
    if active != oracle.active[1:] or not error <= TOLERANCE[bench.model.dtype]:
        raise SystemExit(f"{schedule}: not what the oracle computes; logits differ by {error:.1e}")


def speed(bench: Bench, tokens: int, new_tokens: int, rounds: int, ours: list[str]) -> dict:
    """TTFT and decoding, and how near TTFT comes to what its operations allow."""
    ids = bench.prompt(tokens).unsqueeze(0)
    verify_dense(bench, ids, torch.ones_like(ids))
    for name in ours:
        verify_pruned(bench, name)
    names: dict[str, str | None] = {"transformers": None, **{name: name for name in ours}}
    clocks = interleave(
        {name: lambda s=s: bench.generate(ids, new_tokens, s) for name, s in names.items()}, rounds
    )
    operations = {}
    for name in ours:
        decoder, state = bench.prefill_state(ids[0], name)
        kept = [book.active(state, s + 1, 0) for s in range(len(decoder.boundaries))]
        operations[name] = prefill_operations(decoder, tokens, kept).total
    rows = {}
    for name, runs in clocks.items():
        row: dict[str, Any] = {
            "ttft_s": spread([run.ttft for run in runs]),
            "decode_s_per_token": spread([run.seconds_per_token for run in runs]),
            "ttft_transformers_over_this": _ratio(clocks["transformers"], runs, "ttft"),
            "decode_transformers_over_this": _ratio(
                clocks["transformers"], runs, "seconds_per_token"
            ),
        }
        if name in operations:
            row["operations"] = operations[name]
            gained = _ratio(clocks["dense"], runs, "ttft")
            row["of_ideal"] = gained / (operations["dense"] / operations[name])
        rows[name] = row
    return {"prompt_tokens": tokens, "new_tokens": new_tokens, "rounds": rounds, "rows": rows}


def _ratio(numerator: list[Clock], denominator: list[Clock], field: str) -> float:
    """Median of the ratios round by round."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs)


def padded_batch(bench: Bench, shortest: int, longest: int, size: int, rounds: int) -> dict:
    """Left-padded prompts of `size` different lengths, one new token each, schedule dense."""
    lengths = torch.linspace(shortest, longest, size).long().tolist()
    ids = torch.zeros(size, longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = bench.prompt(length, start=97 * row)
        mask[row, longest - length :] = 1

    verify_dense(bench, ids, mask)

    def run(schedule: str | None) -> float:
        begin = time.perf_counter()
        with bench.under(schedule):
            bench.model.generate(
                ids, attention_mask=mask, max_new_tokens=1, do_sample=False, pad_token_id=0
            )
        return time.perf_counter() - begin

    times = interleave({"transformers": lambda: run(None), "dense": lambda: run("dense")}, rounds)
    ratios = [a / b for a, b in zip(times["transformers"], times["dense"], strict=True)]
    return {
        "lengths": lengths,
        "rounds": rounds,
        "seconds": {name: spread(values) for name, values in times.items()},
        "transformers_over_dense": statistics.median(ratios),
    }


def shares(bench: Bench, tokens: int, schedules: list[str]) -> dict:
    """Share of scoring and selection in a prefill, from the profiler."""
    ids = bench.prompt(tokens)
    result = {}
    for schedule in schedules:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            begin = time.perf_counter()
            bench.prefill_state(ids, schedule)
            total = time.perf_counter() - begin
        spent = {event.key: event.cpu_time_total * 1e-6 for event in profile.key_averages()}
        scoring = spent.get("lazyllm::token_importance", 0.0)
        selecting = spent.get("lazyllm::select_tokens", 0.0)
        result[schedule] = {
            "scoring_s": scoring,
            "selecting_s": selecting,
            "prefill_s": total,
            "share": (scoring + selecting) / total,
        }
    return result


def stored_bytes(bench: Bench, tokens: int, new_tokens: int, schedules: list[str]) -> dict:
    """Bytes that a generation holds, over those of the sets: C_s in every layer, and what waits."""
    ids = bench.prompt(tokens)
    result = {}
    for schedule in schedules:
        decoder, state = bench.prefill_state(ids, schedule)
        with torch.no_grad():
            for token in range(new_tokens):
                new = torch.tensor([int(ids[token])])
                decoder(new, torch.tensor([tokens + token]), [1], state, 1)
        size = bench.model.dtype.itemsize
        need = 0
        for layers, counts in zip(
            decoder.spec.stage_layers, book.computed_per_stage(state), strict=True
        ):
            for layer in layers:
                width = decoder.spec.num_kv_heads[layer] * decoder.spec.head_dim[layer]
                need += 2 * sum(counts) * width * size
        waiting = sum(sum(counts) for counts in book.waiting_per_boundary(state))
        need += waiting * decoder.spec.hidden_size * size
        held = book.kv_nbytes(state) + book.aux_nbytes(state)
        result[schedule] = {
            "held": held,
            "needed": need,
            "ratio": held / need,
            "tables": book.table_nbytes(state),
        }
    return result
