"""apply and remove: the model as it was, whatever happened in between."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

import lazyllm_ext

from .tiny import PRUNING, assert_same_generation, generate, keep_all, tiny_model


class TestRemove:
    def test_everything_is_put_back(self, model: nn.Module, ids: Tensor) -> None:
        before, classes = dict(model.__dict__), dict(type(model).__dict__)
        plain = generate(model, input_ids=ids)
        lazy = lazyllm_ext.apply(model, PRUNING)
        assert model.generate.__self__ is lazy
        generate(model, input_ids=ids)
        lazy.remove()
        assert model.__dict__ == before
        assert dict(type(model).__dict__) == classes
        again = generate(model, input_ids=ids)
        assert torch.equal(again.sequences, plain.sequences)
        assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))
        lazy.remove()  # once more: nothing to do

    def test_other_models_of_the_class_are_left_alone(self, model: nn.Module, ids: Tensor) -> None:
        other = tiny_model("llama")
        expected = generate(other, input_ids=ids)
        lazyllm_ext.apply(model, PRUNING)
        assert_same_generation(generate(other, input_ids=ids), expected, tolerance=0)

    def test_with(self, model: nn.Module, ids: Tensor) -> None:
        before = dict(model.__dict__)
        with lazyllm_ext.apply(model, "dense") as lazy:
            generate(model, input_ids=ids)
        assert model.__dict__ == before
        assert lazy.report().prompt_tokens == 39
        with pytest.raises(ZeroDivisionError), lazyllm_ext.apply(model, "dense"):
            raise ZeroDivisionError
        assert model.__dict__ == before

    def test_an_own_generate_is_called_and_comes_back(self, model: nn.Module, ids: Tensor) -> None:
        calls = []
        original = model.generate

        def own_generate(*args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs)
            return original(*args, **kwargs)

        model.generate = own_generate
        with lazyllm_ext.apply(model, PRUNING):
            model.generate(ids, max_new_tokens=2)
        assert len(calls) == 1
        assert model.generate is own_generate

    def test_replaced_by_somebody_else_in_between(self, model: nn.Module) -> None:
        lazy = lazyllm_ext.apply(model, "dense")
        ours = model.forward
        model.forward = lambda *args, **kwargs: ours(*args, **kwargs)
        with pytest.raises(RuntimeError, match=r"remove: model\.forward was replaced"):
            lazy.remove()
        model.forward = ours
        lazy.remove()
        assert "forward" not in model.__dict__


class TestChecked:
    @pytest.mark.parametrize(
        "schedule, where",
        [(PRUNING, "NaN in the importance of layer 1"), ("dense", "NaN in the logits of layer 3")],
    )
    def test_raises(self, model: nn.Module, ids: Tensor, schedule: Any, where: str) -> None:
        with torch.no_grad():
            model.model.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
        checked = lazyllm_ext.apply(model, schedule, checked=True)
        with checked, pytest.raises(RuntimeError, match=where):
            generate(model, input_ids=ids)
        with lazyllm_ext.apply(model, schedule):
            generate(model, input_ids=ids)

    def test_a_sequence_with_nan_does_not_reach_another(
        self, model: nn.Module, ids: Tensor
    ) -> None:
        alone = generate(tiny_model("llama"), input_ids=ids[1:2])
        token = min(set(ids[0].tolist()) - set(alone.sequences[0].tolist()))
        with torch.no_grad():
            model.model.embed_tokens.weight[token] = float("nan")
        with lazyllm_ext.apply(model, keep_all(model)):
            out = generate(model, input_ids=ids[:2])
        assert all(step[0].isnan().all() for step in out.logits)
        assert torch.equal(out.sequences[1], alone.sequences[0])
        checked = lazyllm_ext.apply(model, keep_all(model), checked=True)
        with checked, pytest.raises(RuntimeError, match="NaN in the"):
            generate(model, input_ids=ids[:2])


class TestApply:
    def test_twice(self, model: nn.Module) -> None:
        lazy = lazyllm_ext.apply(model, "dense")
        with pytest.raises(ValueError, match="applied already"):
            lazyllm_ext.apply(model, "balanced")
        lazy.remove()
        lazyllm_ext.apply(model, "balanced")

    def test_a_refusal_leaves_the_model_alone(self, model: nn.Module) -> None:
        before = dict(model.__dict__)
        for schedule in ("no such schedule", {"boundaries": [{"layer": 3, "keep": 0.5}]}):
            with pytest.raises(ValueError, match="schedule"):
                lazyllm_ext.apply(model, schedule)
        assert model.__dict__ == before

    def test_spellings_of_a_schedule(self, model: nn.Module, tmp_path: Any) -> None:
        schedule = lazyllm_ext.PruningSchedule.from_dict(PRUNING)
        path = tmp_path / "schedule.json"
        path.write_text(schedule.to_json())
        for spelling in (schedule, PRUNING, path, str(path)):
            with lazyllm_ext.apply(model, spelling) as lazy:
                assert lazy.schedule == schedule

    def test_a_schedule_for_a_known_model(self, model: nn.Module, ids: Tensor) -> None:
        model.config._name_or_path = "somewhere/Tiny"
        schedule = {"boundaries": [], "models": {"tiny": PRUNING}}
        with lazyllm_ext.apply(model, schedule) as lazy:
            generate(model, input_ids=ids)
        assert lazy.report().boundary_layers == [1, 2]
        assert lazy.report().schedule["window"] == 2

    def test_a_copied_model_runs_its_own_weights(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        expected = generate(model, input_ids=ids)
        twin = copy.deepcopy(model)
        model.lm_head.weight.data.zero_()
        assert twin.generate.__self__.model is twin
        assert_same_generation(generate(twin, input_ids=ids), expected, tolerance=0)

    def test_a_cache_of_a_model_that_was_cast_since(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        past = model(ids, logits_to_keep=1).past_key_values
        model.to(torch.bfloat16)
        with pytest.raises(ValueError, match=r"expected torch\.bfloat16 on cpu"):
            model(ids[:, :1], past_key_values=past)
        assert model(ids, logits_to_keep=1).logits.dtype == torch.bfloat16

    def test_a_cache_of_a_model_that_was_changed_since(self, model: nn.Module, ids: Tensor) -> None:
        """It goes on with what it holds, as transformers' own does, if the layers fit."""
        lazy = lazyllm_ext.apply(model, keep_all(model))
        plain = tiny_model("llama")
        pasts = [one(ids, logits_to_keep=1).past_key_values for one in (model, plain)]
        for one in (model, plain):
            one.model.layers[1].self_attn.scaling *= 2
        for _ in range(2):
            ours, theirs = (
                one(ids[:, :1], past_key_values=past).logits
                for one, past in zip((model, plain), pasts, strict=True)
            )
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        lazy.remove()
        lazyllm_ext.apply(model, "dense")
        pasts = [
            model(ids, logits_to_keep=1, lazy_schedule=schedule).past_key_values
            for schedule in (None, keep_all(model))
        ]
        del model.model.layers[0]
        with pytest.raises(ValueError, match="begun when its layers were others"):
            model(ids[:, :1], past_key_values=pasts[0])
        with pytest.raises(ValueError, match="schedule: expected a full-attention layer, got"):
            model(ids[:, :1], past_key_values=pasts[1])
        model(ids, logits_to_keep=1)

    def test_callbacks_stay(self, model: nn.Module, ids: Tensor) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        seen: list[int] = []
        lazy.decoder.on_layer = lambda layer, rows: seen.append(layer)
        lazy.decoder.on_importance = lambda boundary, scored: scored.flip(0)
        expected = model(ids, logits_to_keep=1).logits
        model.lm_head = copy.deepcopy(model.lm_head)
        assert torch.equal(model(ids, logits_to_keep=1).logits, expected)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(ids, logits_to_keep=1).logits, expected)
        assert seen == [0, 1, 2, 3] * 3

    @torch.no_grad()
    def test_nothing_is_built_anew_for_nothing(self, model: nn.Module, ids: Tensor) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        decoder = lazy.decoder
        generate(model, input_ids=ids, num_beams=2)
        lazy.prefill(ids)
        assert lazy.decoder is decoder

    def test_wrapped_projections_are_called(self, ids: Tensor) -> None:
        """As LoRA does it: another module in the projection's place, and it is not a Linear."""
        model = tiny_model("qwen2")
        for layer in model.model.layers:
            layer.self_attn.v_proj = _LowRank(layer.self_attn.v_proj)
            layer.mlp.down_proj = _LowRank(layer.mlp.down_proj)
        expected = generate(model, input_ids=ids)
        lazyllm_ext.apply(model, keep_all(model))
        assert_same_generation(generate(model, input_ids=ids), expected)

    def test_no_gradient_is_kept(self, model: nn.Module, ids: Tensor) -> None:
        model.requires_grad_(True)
        lazyllm_ext.apply(model, PRUNING)
        assert not model(ids, logits_to_keep=1).logits.requires_grad

    def test_progress(self, model: nn.Module, ids: Tensor) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        seen: list[tuple[int, int]] = []
        lazy.decoder.on_layer = lambda layer, rows: seen.append((layer, rows))
        model(ids, logits_to_keep=1)
        assert seen == [(0, 39), (1, 3 * 8), (2, 3 * 4), (3, 3)]


class TestInterrupts:
    def _interrupt_step(self, lazy: Any, step: int) -> None:
        """Ctrl-C in the middle of layer 2 of a step."""
        done = [0]

        def on_layer(layer: int, rows: int) -> None:
            done[0] += layer == 2
            if done[0] > step:
                raise KeyboardInterrupt

        lazy.decoder.on_layer = on_layer

    @pytest.mark.parametrize("step", [0, 3])
    def test_in_the_middle_of_a_step(self, model: nn.Module, ids: Tensor, step: int) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        expected = generate(model, input_ids=ids)
        report = lazy.report()
        self._interrupt_step(lazy, step)
        with pytest.raises(KeyboardInterrupt):
            generate(model, input_ids=ids)
        lazy.decoder.on_layer = None
        assert lazy.report() is report  # of the last one that finished
        assert_same_generation(generate(model, input_ids=ids), expected, tolerance=0)

    def test_the_cache_of_an_interrupted_step(
        self, model: nn.Module, ids: Tensor, tmp_path: Any
    ) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        past = model(ids, logits_to_keep=1).past_key_values
        self._interrupt_step(lazy, 0)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, :1], past_key_values=past)
        lazy.decoder.on_layer = None
        for use in (
            lambda: model(ids[:, :1], past_key_values=past),
            lambda: generate(model, input_ids=ids, past_key_values=past),
            lambda: lazy.save(past, tmp_path / "x"),
            lambda: past.crop(-1),
            lambda: past.reorder_cache(torch.tensor([1, 0, 2])),
            lambda: past.batch_repeat_interleave(2),
            lambda: past.batch_select_indices(torch.tensor([0])),
            past.copy,
            past.report,
        ):
            with pytest.raises(ValueError, match="interrupted or is still running"):
                use()
        past.reset()
        model(ids, past_key_values=past, logits_to_keep=1)

    def test_between_steps(self, model: nn.Module, ids: Tensor) -> None:
        """The cache is complete then, and the conversation can go on from it."""
        lazyllm_ext.apply(model, keep_all(model))
        past = model(ids, logits_to_keep=1).past_key_values
        more = torch.cat([ids, ids[:, :3]], dim=1)
        stop = StoppingCriteriaList([_Interrupt(after=more.size(1) + 2)])
        with pytest.raises(KeyboardInterrupt):
            generate(model, input_ids=more, past_key_values=past, stopping_criteria=stop)
        seen = past.get_seq_length()
        assert seen == more.size(1) + 1
        past.crop(more.size(1) - 1 - seen)
        again = generate(model, input_ids=more, past_key_values=past)
        assert_same_generation(again, generate(model, input_ids=more))


class TestTwoAtOnce:
    def test_in_threads(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        prompts = [ids[:1], ids[1:, :7]]
        expected = [generate(model, input_ids=prompt) for prompt in prompts]
        got: list[Any] = [None, None]

        def work(i: int) -> None:
            for _ in range(3):
                got[i] = generate(model, input_ids=prompts[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ours, theirs in zip(got, expected, strict=True):
            assert_same_generation(ours, theirs, tolerance=1e-6)

    def test_two_in_a_row_are_equal(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        first = generate(model, input_ids=ids)
        generate(model, input_ids=ids.flip(1))
        assert_same_generation(generate(model, input_ids=ids), first, tolerance=0)


class _LowRank(nn.Module):
    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class _Interrupt(StoppingCriteria):
    def __init__(self, after: int):
        self.after = after

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        if input_ids.size(1) >= self.after:
            raise KeyboardInterrupt
        return torch.zeros(input_ids.size(0), dtype=torch.bool)
