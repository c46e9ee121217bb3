"""What each of two tensor-parallel processes does, begun by test_parallel.py with torchrun.

    torchrun --nproc-per-node 2 in_parallel.py FOLDER

FOLDER holds one folder for each model, cases.json with what is asked of them, and inputs.pt. Each
process writes what it got to FOLDER/rank0.pt or rank1.pt.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import lazyllm_ext


def measure(model: Any, schedule: Any, inputs: dict[str, Any], new_tokens: int) -> dict[str, Any]:
    """One generation under a schedule: its tokens and logits, and which prompt tokens were kept."""
    with lazyllm_ext.apply(model, schedule) as lazy:
        out = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        cache = out.past_key_values
        report = lazy.report()
        return {
            "sequences": out.sequences,
            "logits": torch.stack(out.logits),
            "kept": [active.clone() for active in cache.state.active],
            "tokens_per_stage": report.tokens_per_stage,
            "revived": report.revived_per_boundary,
            "kv_bytes": report.kv_bytes,
        }


def ways(model: Any, schedule: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tokens that each way to generate gives."""
    length = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with lazyllm_ext.apply(model, schedule, checked=True):
        first = model.generate(ids, return_dict_in_generate=True, **length)
        more = torch.cat([first.sequences, ids[:, :9]], dim=1)
        got = {
            "a second turn": model.generate(more, past_key_values=first.past_key_values, **length),
            "beams": model.generate(ids, num_beams=3, **length),
            "prompt lookup": model.generate(ids, prompt_lookup_num_tokens=3, **length),
        }
        torch.manual_seed(3)
        got["sampling"] = model.generate(ids, **{**length, "do_sample": True})
        return got


def outcome(folder: Path, schedule: Any, inputs: dict[str, Any]) -> Any:
    """What a model gives, divided over the processes; or why it cannot be."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, tp_plan="auto", attn_implementation="eager"
        )
        return measure(model, schedule, inputs, 3)
    except ValueError as error:
        return str(error)


def refused(call: Callable[[], object]) -> str:
    """The sentence of a refusal; '' where there was none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cases = json.loads((folder / "cases.json").read_text())
    inputs = torch.load(folder / "inputs.pt")
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder / name, tp_plan="auto")
        for name in cases["models"]
    }
    got: dict[str, Any] = {
        f"{name} {schedule} {batch}": measure(
            models[name], cases["schedules"][schedule], inputs[batch], cases["new_tokens"]
        )
        for name, schedule, batch in cases["runs"]
    }
    got["ways"] = ways(
        models[cases["models"][0]], cases["schedules"]["revives"], inputs["one"]["input_ids"]
    )
    for kind, schedule in cases["every"].items():
        got[kind] = outcome(folder / "every" / kind, schedule, inputs["padded"])
    for name, schedule in cases["refused"]:
        got[f"{name} {schedule}"] = refused(
            lambda name=name, schedule=schedule: lazyllm_ext.apply(
                models[name], cases["schedules"][schedule]
            )
        )
    model = models[cases["models"][0]]
    with lazyllm_ext.apply(model, "dense") as lazy:
        cache = lazy.prefill(inputs["one"]["input_ids"])
        got["save"] = refused(lambda: lazy.save(cache, folder / "saved"))
        got["load"] = refused(lambda: lazy.load(folder / "saved"))
    # Without a plan every process has the whole model, and here its own prompts.
    own = {key: value[int(os.environ["RANK"]) :: 2] for key, value in inputs["padded"].items()}
    model_of_own = AutoModelForCausalLM.from_pretrained(folder / cases["models"][0])
    got["own prompts"] = measure(
        model_of_own, cases["schedules"]["revives"], own, cases["new_tokens"]
    )
    got["export"] = refused(lambda: lazyllm_ext.LazyDecoder.from_model(model, "dense", export=True))
    torch.save(got, folder / f"rank{os.environ['RANK']}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
