"""The decoder under torch.jit.script. No postponed annotations here: TorchScript reads them."""

import pytest
import torch
from helpers import MODELS, boundary_layers, random_ids, shared_model
from torch import Tensor, nn

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import Boundary, PruningSchedule
from lazyllm_ext.state import LazyState


class Session(nn.Module):
    """A decoder and a state: arguments of a scripted function get copies of the state's lists."""

    state: LazyState

    def __init__(self, decoder: LazyDecoder, batch: int):
        super().__init__()
        self.decoder = decoder
        self.state = decoder.new_state(batch, torch.zeros(1))

    def forward(self, ids: Tensor, positions: Tensor, counts: list[int], asked: int) -> Tensor:
        hidden = self.decoder.embed_tokens(ids)
        return self.decoder.step(hidden, positions, counts, self.state, asked)

    @torch.jit.export
    def sets(self) -> tuple[list[list[int]], list[list[int]]]:
        return (
            bookkeeping.computed_per_stage(self.state),
            bookkeeping.waiting_per_boundary(self.state),
        )

    @torch.jit.export
    def crop(self, counts: list[int]) -> None:
        bookkeeping.crop_(self.state, counts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("max_revive", [None, 1])
@pytest.mark.parametrize("name", MODELS)
def test_computes_the_same(name: str, max_revive: int | None) -> None:
    model = shared_model(name)
    layers = boundary_layers(model)[-2:]
    boundaries = tuple(Boundary(layer=layer, keep=0.4) for layer in layers)
    schedule = PruningSchedule(boundaries, window=2, max_revive=max_revive)
    scripted = torch.jit.script(Session(LazyDecoder.from_model(model, schedule, export=True), 2))
    plain = Session(LazyDecoder.from_model(model, schedule), 2)
    length = [0, 0]
    for step, counts in enumerate([[20, 13], [1, 1], [1, 1], [3, 2], [1, 1], [1, 1]]):
        ids = torch.tensor(random_ids(sum(counts), seed=step))
        positions = torch.cat([length[b] + torch.arange(count) for b, count in enumerate(counts)])
        with torch.no_grad():
            got, expected = (run(ids, positions, counts, 1) for run in (scripted, plain))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        assert scripted.sets() == plain.sets()
        length = [length[0] + counts[0], length[1] + counts[1]]
        if step == 3:
            scripted.crop([2, 1])
            plain.crop([2, 1])
            length = [length[0] - 2, length[1] - 1]
