"""Which scores find the answer, layer by layer: recall of the answer's tokens in the best part.

    python benchmarks/scorers.py --model FOLDER --tasks tasks/ --target-tokens 2000 --output NAME

Items count whose answer stands in the prompt, before the question. One dense prefill by plain
transformers gives the attention that the last 32 tokens pay in every layer; each scorer makes a
score of it, and as many tokens are taken as `--keep` allows, protected ones first. Recall by chance
is about `--keep`. Mean over the items of a task, then over the tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lazyllm_ext.lab.evaluation import read_tasks
from lazyllm_ext.lab.evaluation.subject import Subject
from lazyllm_ext.lab.evaluation.tasks import Item
from lazyllm_ext.lab.tools.files import write_pair
from lazyllm_ext.lab.tools.machine import describe
from lazyllm_ext.lab.tools.tables import markdown_table
from lazyllm_ext.progress_bar import track

WINDOW, FIRST = 32, 4

# What the last queries of one prompt say: [layers, queries, heads, tokens] -> [layers, tokens].
Scorer = Callable[[Tensor], Tensor]


def pooled(scores: Tensor, width: int) -> Tensor:
    """Maximum over `width` neighbours, [layers, tokens]."""
    return torch.nn.functional.max_pool1d(scores[:, None], width, 1, width // 2)[:, 0]


def mean(window: int, width: int) -> Scorer:
    return lambda attention: pooled(attention[:, -window:].mean((1, 2)), width)


def maximum(window: int, width: int) -> Scorer:
    return lambda attention: pooled(attention[:, -window:].mean(1).amax(1), width)


def accumulated(window: int, width: int) -> Scorer:
    return lambda attention: pooled(attention[:, -window:].mean((1, 2)).cumsum(0), width)


SCORERS: dict[str, Scorer] = {
    "last query, mean over heads (the paper)": mean(1, 1),
    "last query, pool 7": mean(1, 7),
    "last query, pool 15": mean(1, 15),
    "8 queries, pool 15": mean(8, 15),
    "32 queries, pool 1": mean(32, 1),
    "32 queries, pool 7": mean(32, 7),
    "32 queries, pool 15": mean(32, 15),
    "32 queries, pool 31": mean(32, 31),
    "32 queries, pool 15, maximum over heads": maximum(32, 15),
    "32 queries, pool 15, added up over all layers so far": accumulated(32, 15),
}


def last_queries(model: Any, ids: Tensor) -> Tensor:
    """[layers, 32, heads, tokens] float32: the attention of the last 32 tokens."""
    seen: list[Tensor] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
    ) -> Any:
        keys = key[0].float().repeat_interleave(query.shape[1] // key.shape[1], 0)
        logits = query[0, :, -WINDOW:].float() @ keys.transpose(1, 2) * rest["scaling"]
        hidden = torch.ones(logits.shape[1:], dtype=torch.bool).triu(logits.shape[2] - WINDOW + 1)
        seen.append(logits.masked_fill(hidden, -torch.inf).softmax(-1).transpose(0, 1))
        return sdpa_attention_forward(module, query, key, value, mask, **rest)

    ALL_ATTENTION_FUNCTIONS.register("observed", attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register("observed", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation("observed")
    with torch.no_grad():
        model(ids[None], logits_to_keep=1)
    return torch.stack(seen)


def answer_tokens(subject: Subject, item: Item) -> tuple[Tensor, list[int]]:
    """The prompt's tokens, and the places of those that belong to an answer before the question."""
    prompt = subject.encode(item)
    end = prompt.text.rfind(item.question) if item.question else len(prompt.text)
    spans = []
    for answer in item.answers:
        place = prompt.text.find(answer)
        while 0 <= place < end:
            spans.append((place, place + len(answer)))
            place = prompt.text.find(answer, place + 1)
    places = [
        token
        for token, (begin, stop) in enumerate(prompt.spans)
        if any(begin < last and stop > first for first, last in spans)
    ]
    return prompt.ids, places


def recall(scores: Tensor, answer: list[int], keep: float) -> Tensor:
    """[layers]: part of the answer's tokens among the best, protected ones included."""
    scores = scores.clone()
    scores[:, :FIRST] = scores[:, -WINDOW:] = torch.inf
    best = scores.topk(int(keep * scores.shape[1])).indices
    return torch.zeros_like(scores).scatter_(1, best, 1.0)[:, answer].mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--tasks", required=True, action="append", help="file or folder")
    parser.add_argument("--target-tokens", type=int, help="only items of this nominal length")
    parser.add_argument("--limit", type=int, default=5, help="items of each task")
    parser.add_argument("--keep", type=float, default=0.2)
    parser.add_argument("--output", required=True, help="path without suffix, for .json and .md")
    arguments = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    subject = Subject(model, AutoTokenizer.from_pretrained(arguments.model))
    chosen: dict[str, list[tuple[Tensor, list[int]]]] = {}
    for item in read_tasks(arguments.tasks).items:
        mine = chosen.setdefault(item.task, [])
        if len(mine) < arguments.limit and arguments.target_tokens in (None, item.target_tokens):
            ids, answer = answer_tokens(subject, item)
            if answer and item.metric in ("contains", "f1"):
                mine.append((ids, answer))
    flat = [(task, *prompt) for task, prompts in chosen.items() for prompt in prompts]
    if not flat:
        raise SystemExit("--tasks: expected items whose answer stands in the prompt, got none")
    of_task: dict[str, dict[str, list[Tensor]]] = {name: {} for name in SCORERS}
    for task, ids, answer in track(flat, "prompts"):
        attention = last_queries(model, ids)
        for name, scorer in SCORERS.items():
            found = recall(scorer(attention), answer, arguments.keep)
            of_task[name].setdefault(task, []).append(found)
    curves = {
        name: torch.stack([torch.stack(found).mean(0) for found in tasks.values()]).mean(0).tolist()
        for name, tasks in of_task.items()
    }
    counts = {task: len(prompts) for task, prompts in chosen.items() if prompts}
    _write(Path(arguments.output), arguments, curves, counts)


def _write(
    path: Path, arguments: Any, curves: dict[str, list[float]], counts: dict[str, int]
) -> None:
    head = {
        "model": Path(arguments.model).name,
        "target_tokens": arguments.target_tokens,
        "keep": arguments.keep,
        "items": counts,
        "machine": describe(),
    }
    layers = range(len(next(iter(curves.values()))))
    rows = [[name, *(f"{100 * x:.0f}" for x in curve)] for name, curve in curves.items()]
    text = [
        f"# Recall of the answer's tokens by layer: {head['model']}",
        "",
        f"In percent, among the best {100 * arguments.keep:g} % of the tokens; prompts of "
        f"{arguments.target_tokens} tokens: {sum(counts.values())} items of {', '.join(counts)}.",
        "",
        *markdown_table(["scores", *map(str, layers)], rows),
    ]
    write_pair(path, {**head, "recall by layer": curves}, text)


if __name__ == "__main__":
    main()
