"""A schedule for one call, and what a report says of every sequence."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext

from .tiny import PRUNING, assert_same_generation, generate, left_padded, tiny_model

OTHER = {"boundaries": [{"layer": 0, "tokens": 5}], "max_revive": 1, "min_tokens": 3}


class TestSchedules:
    def test_as_if_it_had_been_applied(self, model: nn.Module, ids: Tensor) -> None:
        expected = {}
        for name, schedule in {"a": PRUNING, "b": OTHER, "c": "dense"}.items():
            with lazyllm_ext.apply(model, schedule):
                expected[name] = generate(model, input_ids=ids)
        lazy = lazyllm_ext.apply(model, PRUNING)
        for name, schedule in {"b": OTHER, "a": None, "c": "dense"}.items():
            got = generate(model, input_ids=ids, lazy_schedule=schedule)
            assert_same_generation(got, expected[name], tolerance=0)
        assert lazy.report().boundary_layers == []
        assert lazy.schedule == lazyllm_ext.PruningSchedule.from_dict(PRUNING)

    def test_a_conversation_keeps_its_schedule(self, model: nn.Module, ids: Tensor) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        first = model(ids, logits_to_keep=1, lazy_schedule=OTHER)
        step = model(ids[:, :1], past_key_values=first.past_key_values)
        assert step.past_key_values.report().boundary_layers == [0]
        with pytest.raises(ValueError, match="lazy_schedule: expected the schedule that the cache"):
            model(ids[:, :1], past_key_values=step.past_key_values, lazy_schedule="dense")
        cache = lazy.prefill(ids, lazy_schedule=OTHER)
        more = torch.cat([ids, ids[:, :3]], dim=1)
        generate(model, input_ids=more, past_key_values=cache)
        assert lazy.report().boundary_layers == [0]

    def test_decoders_of_many_schedules_are_given_back(self, model: nn.Module, ids: Tensor) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        caches = [
            lazy.prefill(ids, lazy_schedule={**OTHER, "min_tokens": number}) for number in range(40)
        ]
        model(ids[:, :1], past_key_values=caches[0])  # its decoder is there as long as it is
        caches.clear()
        gc.collect()
        assert len(lazy._plans._built) == 17

    def test_modules_changed_since(self, model: nn.Module, ids: Tensor) -> None:
        """Each schedule's decoder is of the model as it is, those made before as well."""
        lazyllm_ext.apply(model, PRUNING)
        expected = generate(model, input_ids=ids, lazy_schedule="dense").sequences
        own, model.lm_head = model.lm_head, tiny_model("llama").lm_head
        with torch.no_grad():
            model.lm_head.weight.neg_()
        for schedule in ("dense", {**OTHER, "min_tokens": 99}):
            got = generate(model, input_ids=ids, lazy_schedule=schedule).sequences
            assert not torch.equal(got, expected)
        model.lm_head = own
        for schedule in ("dense", {**OTHER, "min_tokens": 99}):
            got = generate(model, input_ids=ids, lazy_schedule=schedule).sequences
            assert torch.equal(got, expected)

    def test_saved(self, model: nn.Module, ids: Tensor, tmp_path: Any) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        lazy.save(lazy.prefill(ids, lazy_schedule=OTHER), tmp_path / "x")
        assert lazy.load(tmp_path / "x", lazy_schedule=OTHER).get_seq_length() == 13
        with pytest.raises(ValueError, match="under a schedule with other boundaries"):
            lazy.load(tmp_path / "x")

    def test_refused_as_apply_does(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        for use in (model, model.generate):
            with pytest.raises(ValueError, match="schedule"):
                use(ids, lazy_schedule={"boundaries": [{"layer": 3, "keep": 0.5}]})

    def test_a_copied_model_runs_its_own_weights(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        expected = generate(model, input_ids=ids, lazy_schedule=OTHER)
        twin = copy.deepcopy(model)
        model.lm_head.weight.data.zero_()
        got = generate(twin, input_ids=ids, lazy_schedule=OTHER)
        assert_same_generation(got, expected, tolerance=0)


def test_each_sequence_as_it_is_alone(ids: Tensor) -> None:
    model = tiny_model("llama")
    lazy = lazyllm_ext.apply(model, PRUNING)
    prompts = [ids[0], ids[1, :5], ids[2, :9]]
    generate(model, **left_padded(prompts))
    together = lazy.report()
    for prompt, sequence in zip(prompts, together.per_sequence, strict=True):
        generate(model, input_ids=prompt[None])
        (alone,) = lazy.report().per_sequence
        assert sequence == alone
        assert lazy.report().prompt_computed_percent == alone.prompt_computed_percent
        assert (alone.prompt_tokens, alone.generated_tokens) == (len(prompt), 8)
    for name in ("prompt_tokens", "generated_tokens", "tokens_total"):
        of_all = sum(getattr(sequence, name) for sequence in together.per_sequence)
        assert of_all == getattr(together, name)
    written = json.loads(together.to_json())["per_sequence"]
    assert [entry["prompt_tokens"] for entry in written] == [13, 5, 9]


class TestProgress:
    def test_every_layer_of_the_prompt(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        seen: list[Any] = []
        generate(model, input_ids=ids, lazy_progress=seen.append)
        assert [step.layers_done for step in seen] == [1, 2, 3, 4]
        assert [step.tokens_in_layer for step in seen] == [39, 3 * 8, 3 * 4, 3]
        assert {(step.layers, step.tokens) for step in seen} == {(4, 39)}
        assert all(one.seconds < other.seconds for one, other in itertools.pairwise(seen))
        assert seen[-1].remaining_seconds == 0 < seen[0].remaining_seconds
        generate(model, input_ids=ids)
        assert len(seen) == 4  # that call only

    def test_each_thread_sees_its_own(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        seen: list[list[Any]] = [[], []]

        def work(i: int) -> None:
            for _ in range(3):
                generate(model, input_ids=ids[: i + 1], lazy_progress=seen[i].append)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i in range(2):
            assert [step.tokens for step in seen[i]] == [13 * (i + 1)] * 12

    def test_it_can_end_the_generation(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        expected = generate(model, input_ids=ids)

        def stop(step: Any) -> None:
            if step.layers_done == 2:
                raise TimeoutError

        with pytest.raises(TimeoutError):
            generate(model, input_ids=ids, lazy_progress=stop)
        assert_same_generation(generate(model, input_ids=ids), expected, tolerance=0)
        with pytest.raises(TypeError, match="lazy_progress: expected a function, got int"):
            generate(model, input_ids=ids, lazy_progress=3)
