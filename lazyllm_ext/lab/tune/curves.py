"""At which layers the scores find what later layers attend to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lazyllm_ext.lab.evaluation.static import SCORING

KEEP = 0.2
TOP_TOKENS = 64
MOST_LAYERS = 6
_APART = 2
# In the first layers attention follows place and syntax, whatever is asked: that later layers look
# at what it finds says nothing there.
_EARLIEST = 0.2


@dataclass(frozen=True)
class Recall:
    """What the best fifth of the tokens by a layer's scores holds, protected tokens left out."""

    layer: int  # whose scores they are
    mass: float  # part of the attention that the continuation's tokens pay in later layers
    top: float  # part of the 64 tokens to which these layers attend most


def recalls(scores: Mapping[int, Tensor], attention: Mapping[int, Tensor]) -> list[Recall]:
    """The curve of one prompt.

    Args:
        scores: for each layer where a boundary may be, the window's mean attention to each token of
            the prompt, [n] float32.
        attention: for the same layers the continuation's, summed over its tokens, [n] float32.

    Returns:
        One entry for each layer that has a later one among them; none for a prompt whose tokens are
        all protected.
    """
    layers = sorted(scores)
    tokens = scores[layers[0]].numel() if layers else 0
    first, last = SCORING.protect_first, SCORING.window
    free = slice(first, max(first, tokens - last))
    curve: list[Recall] = []
    if tokens <= first + last:
        return curve
    for place, layer in enumerate(layers[:-1]):
        later = torch.stack([attention[other] for other in layers[place + 1 :]]).sum(0)[free]
        pooled = torch.nn.functional.max_pool1d(
            scores[layer][None, None], SCORING.pool, stride=1, padding=SCORING.pool // 2
        )[0, 0, free]
        found = torch.zeros_like(later)
        found[_best(pooled, max(1, round(KEEP * later.numel())))] = 1.0
        wanted = _best(later, min(TOP_TOKENS, later.numel()))
        mass = float((later * found).sum() / later.sum().clamp(min=1e-30))
        curve.append(Recall(layer, mass, float(found[wanted].mean())))
    return curve


def _best(values: Tensor, count: int) -> Tensor:
    """Places of the largest ones, ties to the lower place."""
    return values.sort(descending=True, stable=True).indices[:count]


def mean_curve(curves: Sequence[Sequence[Recall]]) -> list[Recall]:
    """The mean over prompts; prompts without a curve do not count."""
    curves = [curve for curve in curves if curve]
    return [
        Recall(
            at[0].layer,
            sum(recall.mass for recall in at) / len(at),
            sum(recall.top for recall in at) / len(at),
        )
        for at in zip(*curves, strict=True)
    ]


def choose_layers(curve: Sequence[Recall], num_layers: int, most: int = MOST_LAYERS) -> list[int]:
    """The layers worth a boundary, ascending; none in the first fifth of the depth.

    An early layer saves most, and one that finds more is worth waiting for: so for each of `most`
    equal steps between the worst and the best recall, the earliest layer that reaches it. Where
    that gives fewer layers, the others with the best recall that are no neighbours of these.

    Recall is of the top tokens: in the first layers a few tokens take most of the attention,
    whatever the prompt asks, and the mass would call these layers the best.

    Args:
        curve: in the order of the layers.
        num_layers: of the model.
    """
    deep = [recall for recall in curve if recall.layer >= _EARLIEST * num_layers]
    curve = deep or curve  # a model may have no other layers
    if not curve:
        return []
    low, high = min(r.top for r in curve), max(r.top for r in curve)
    chosen: list[int] = []
    for step in range(1, most + 1):
        level = low + (high - low) * step / most
        # The highest level is the best layer's own recall, but for rounding.
        layer = next((r.layer for r in curve if r.top >= level - 1e-9), curve[-1].layer)
        if layer not in chosen:
            chosen.append(layer)
    for recall in sorted(curve, key=lambda r: (-r.top, r.layer)):
        if len(chosen) == most:
            break
        if all(abs(recall.layer - layer) >= _APART for layer in chosen):
            chosen.append(recall.layer)
    return sorted(chosen)
