"""The exported program, plain and under torch.jit.script."""

import pytest
import torch
from helpers import MODELS, boundary_layers, random_ids, shared_model, tiny_llama

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.export.program import Program
from lazyllm_ext.schedule import Boundary, PruningSchedule


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("max_revive", "fixed"), [(None, False), (1, False), (1, True)])
@pytest.mark.parametrize("name", MODELS)
def test_computes_the_same(name: str, max_revive: int | None, fixed: bool) -> None:
    model = shared_model(name)
    layers = boundary_layers(model)[-2:]
    boundaries = tuple(Boundary(layer=layer, keep=0.4) for layer in layers)
    schedule = PruningSchedule(boundaries, window=2, max_revive=max_revive)
    vocab = model.config.vocab_size
    decoder = LazyDecoder.from_model(model, schedule, export=True)
    decoder.fixed_on_cpu = fixed
    scripted = torch.jit.script(Program(decoder, vocab, batch=2))
    plain = Program(LazyDecoder.from_model(model, schedule), vocab, batch=2)
    for step, counts in enumerate([[20, 13], [1, 1], [1, 1], [3, 2], [1, 1], [1, 1]]):
        ids = torch.tensor(random_ids(sum(counts), seed=step))
        got, expected = (run(ids, counts, 1) for run in (scripted, plain))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        assert scripted.computed_per_stage() == plain.computed_per_stage()
        assert scripted.waiting_per_boundary() == plain.waiting_per_boundary()
        if step == 3:
            scripted.crop([2, 1])
            plain.crop([2, 1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_what_does_not_fit_one_call_is_computed_part_by_part() -> None:
    model = tiny_llama(num_hidden_layers=2)
    first = model.model.layers[0].self_attn.q_proj
    first.weight.data = first.weight.t().contiguous().t()
    decoder = LazyDecoder.from_model(model, "dense", export=True)
    vocab = model.config.vocab_size
    scripted = torch.jit.script(Program(decoder, vocab, batch=1))
    plain = Program(LazyDecoder.from_model(model, "dense"), vocab, batch=1)
    for seed in range(2):
        ids = torch.tensor(random_ids(9, seed=seed))
        got, expected = (run(ids, [9], 1) for run in (scripted, plain))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
