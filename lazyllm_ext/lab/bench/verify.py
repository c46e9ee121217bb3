"""What is timed computes the right thing: said before anything is timed."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Model
from .request import BenchError

# Of the largest logit: rounding of two orders of summation, over all layers.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def verify_dense(model: Model, ids: Tensor, mask: Tensor) -> None:
    """The last logits of `dense` are transformers', for [B, n] ids and their mask.

    Raises:
        BenchError: they are not, beyond `TOLERANCE` of the largest logit.
    """
    logits = []
    for contender in ("transformers", "dense"):
        with model.under(contender), torch.no_grad():
            # Positions as generate gives them: the padding is not counted.
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            output = model.model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
            logits.append(output.logits[:, -1].float())
    expected, got = logits
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE[model.model.dtype]:
        raise BenchError(f"dense: logits differ from transformers' by {error:.1e} of the largest")
