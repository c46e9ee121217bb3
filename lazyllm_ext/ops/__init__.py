"""The operators of LazyLLM, documented and with defaults.

They are the parts of Fu et al., "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM
Inference" (arXiv 2407.14057, 2024): score the tokens by the attention that the last queries give
them, select the best, move hidden states in and out of the Aux Cache, store keys and values, attend
over what is stored. ``torch.ops.lazyllm.*`` has the same operators with every argument spelled out,
for TorchScript, ``torch.export`` and C++; :mod:`lazyllm_ext.ops.reference` has them in plain
PyTorch.

What holds for all of them:

* Ragged data are packed: a flat tensor and int64 offsets ``[B + 1]`` of the B sequences, the first
  0, the last the flat size. Offsets left out mean one sequence.
* A token's *index* is its place in its own sequence, 0 … n - 1. A *slot* is a row of a flat store
  of keys and values. Both are int64, and -1 marks an unused place: it is skipped.
* Floats are float32, bfloat16 or float16, all of one dtype in a call; sums are taken in float32.
  The last dimension must have stride 1, other strides are honoured.
* All tensors are on one device. CPU operators refuse slots, indices and offsets out of range; CUDA
  operators do not read them back, and treat an entry out of range as unused.
* The same input gives the same result, bit by bit, and a sequence gives in a batch what it gives
  alone; on CUDA, importance and attention to rounding, since how a sequence is split follows the
  whole batch.
* ``torch.utils.flop_counter.FlopCounterMode`` counts them (:mod:`lazyllm_ext.ops.flops`).
* Inference only: with gradients enabled, an input that requires grad is refused (RuntimeError).

A wrong argument raises ``TypeError`` (not a tensor, wrong dtype) or ``ValueError`` (all else), with
the argument, what was expected and what was got. The operators themselves raise ``RuntimeError``
with that sentence.
"""

from __future__ import annotations

from . import reference
from .layer import decoder_layer_
from .rows import gated_activation, linear, rms_norm, rotate
from .stores import aux_gather, aux_scatter_, kv_append_
from .tokens import lazy_attention, select_tokens, token_importance

__all__ = [
    "aux_gather",
    "aux_scatter_",
    "decoder_layer_",
    "gated_activation",
    "kv_append_",
    "lazy_attention",
    "linear",
    "reference",
    "rms_norm",
    "rotate",
    "select_tokens",
    "token_importance",
]
