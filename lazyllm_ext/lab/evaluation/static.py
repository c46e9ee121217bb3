"""Static pruning: the prompt pruned once by the attention of an early layer, the rest dropped."""

from __future__ import annotations

from dataclasses import replace

import torch

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.lab.tools.cost import active_sets, prefill_operations
from lazyllm_ext.lab.tools.dense import full_attention, some_layers
from lazyllm_ext.schedule import Boundary, PruningSchedule

from .sessions import Kept, Reduction
from .subject import Prompt, Subject
from .tasks import Item

DEPTH = 0.25
# How `balanced` scores, and so a stronger baseline than the paper's last query alone.
SCORING = replace(
    PruningSchedule.load("balanced"), name=None, boundaries=(), min_tokens=0, models={}
)


def static_prune(subject: Subject, item: Item, prompt: Prompt, keep: float) -> Reduction:
    """The tokens that the full-attention layer nearest to a quarter of the depth finds important.

    They keep their positions, and are computed anew by the whole model. The layers up to the one
    that scores are computed for all tokens; what they stored is not used.
    """
    scorer = _first_layers(subject, keep)
    ids, n = prompt.ids, prompt.ids.numel()
    with torch.no_grad():
        hidden = scorer.embed_tokens(ids)
        state = scorer.new_state(1, hidden)
        scorer.step(hidden, torch.arange(n, device=ids.device), [n], state, 1)
    [kept] = active_sets(scorer, state)
    layer, layers = scorer.num_layers - 2, len(subject.dense_decoder.layers)
    share = kept.numel() / n
    return Reduction(
        ids=ids[kept],
        positions=kept,
        following=n,
        kept=Kept(layer, kept.tolist()),
        operations=prefill_operations(scorer, n, [kept]).total,
        computed_percent=100.0 * (layer + (layers - layer) * share) / layers,
    )


def _first_layers(subject: Subject, keep: float) -> LazyDecoder:
    """A decoder that ends one layer after the boundary: an ordinary one cannot stop early."""
    whole = subject.dense_decoder
    boundary = Boundary(depth=DEPTH, keep=keep)
    schedule = replace(SCORING, boundaries=(boundary,))
    resolved = schedule.resolve(full_attention(whole))
    return some_layers(whole, slice(resolved.layers[0] + 2), resolved, embeds=True)
