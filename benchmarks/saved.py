"""A question on a prefill that was saved and loaded, beside a run that reads everything."""

import tempfile
from pathlib import Path
from typing import Any

import torch

import lazyllm_ext
from lazyllm_ext.lab.bench.model import Model
from lazyllm_ext.lab.tools.timing import interleave, ratio, seconds, spread


def saved_prefill(
    model: Model, schedule: str, tokens: int, question: int, rounds: int
) -> dict[str, Any]:
    """Seconds to the first token of `question` tokens after a document of `tokens`."""
    whole = model.prompt(tokens + question)[None]

    def first_token(**kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = model.model.generate(
            whole, max_new_tokens=1, do_sample=False, pad_token_id=0, **kwargs
        )
        return made

    with lazyllm_ext.apply(model.model, schedule) as lazy, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "document.safetensors"
        lazy.save(lazy.prefill(whole[:, :tokens]), path)
        document = lazy.load(path)
        contenders = {
            "fresh": seconds(first_token),
            "saved": seconds(lambda: first_token(past_key_values=document.copy())),
        }
        times = interleave(contenders, rounds, title=schedule)
        size = path.stat().st_size
    return {
        "schedule": schedule,
        "tokens": tokens,
        "question": question,
        "rounds": rounds,
        "file_bytes": size,
        "seconds": {name: spread(values) for name, values in times.items()},
        "saved_over_fresh": ratio(times["saved"], times["fresh"]),
    }
