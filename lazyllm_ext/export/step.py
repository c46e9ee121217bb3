"""A decoding step as a function of tensors: what torch.export traces and torch.compile takes.

No postponed annotations here: TorchScript reads those of `tensors_of`.
"""

from torch import Tensor, nn

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.state import LazyState


def tensors_of(state: LazyState) -> list[list[Tensor]]:
    """What a compiled step reads and writes of a state, which `DecodingStep` makes again."""
    return [
        state.keys,
        state.values,
        state.slot,
        state.aux,
        state.aux_slot,
        state.importance,
        state.position,
        [state.length, state.used, state.revived],
    ]


class DecodingStep(nn.Module):
    """A decoding step in fixed shapes, as a function of tensors: what is compiled.

    The host's counters are those of an empty state: they decide about room, and there is enough.

    Args:
        decoder: decodes in fixed shapes on the CPU as well from now on.
    """

    def __init__(self, decoder: LazyDecoder):
        super().__init__()
        decoder.fixed_on_cpu = True
        self.decoder = decoder

    def forward(self, ids: Tensor, tensors: list[list[Tensor]]) -> Tensor:
        """ids [1] int64 and `tensors_of` a state, which are changed -> logits [1, vocab]."""
        keys, values, slot, aux, aux_slot, importance, position, rest = tensors
        length, used, revived = rest
        counters = used.size(0)
        state = LazyState(
            keys=list(keys),
            values=list(values),
            slot=list(slot),
            aux=list(aux),
            aux_slot=list(aux_slot),
            importance=list(importance),
            active=list(slot[1:]),  # replaced, and not handed out
            active_offsets=list(slot[1:]),
            position=list(position),
            length=length,
            host_length=[0],
            used=used,
            used_bound=[0] * counters,
            freed=[0] * counters,
            revived=revived,
            finished=[0],
        )
        hidden = self.decoder.embed_tokens(ids)
        return self.decoder.step(hidden, length.clone(), [1], state, 1)
