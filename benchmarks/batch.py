"""One left-padded batch of prompts of different lengths, beside transformers."""

from typing import Any

import torch

from lazyllm_ext.lab.bench.model import Model
from lazyllm_ext.lab.bench.verify import verify_dense
from lazyllm_ext.lab.tools.timing import interleave, ratio, seconds, spread


def padded_batch(
    model: Model,
    shortest: int,
    longest: int,
    size: int,
    rounds: int,
    schedules: tuple[str, ...],
    new_tokens: int,
) -> dict[str, Any]:
    """Left-padded prompts of `size` different lengths, `new_tokens` generated for each."""
    lengths = torch.linspace(shortest, longest, size).long().tolist()
    ids = torch.zeros(size, longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = model.prompt(length, start=97 * row)
        mask[row, longest - length :] = 1
    verify_dense(model, ids, mask)

    def run(contender: str) -> None:
        with model.under(contender):
            model.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,  # as many of every contender
                do_sample=False,
                pad_token_id=0,
            )

    names = ("transformers", *schedules)
    contenders = {name: seconds(lambda name=name: run(name)) for name in names}
    times = interleave(contenders, rounds, title=f"{size} prompts")
    return {
        "lengths": lengths,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "seconds": {name: spread(values) for name, values in times.items()},
        "transformers_over": {
            name: ratio(times["transformers"], times[name]) for name in schedules
        },
    }
