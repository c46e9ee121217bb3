"""on_error="dense": transformers computes what LazyLLM refuses, with a warning that says why."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, OPTConfig
from transformers.generation.streamers import BaseStreamer

import lazyllm_ext
from lazyllm_ext import NotSupportedError
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .tiny import PRUNING, assert_same_generation, generate, tiny_model

_INSTEAD = "transformers computes the dense model instead"


@pytest.fixture(autouse=True)
def every_warning() -> Iterator[None]:
    """Python shows a warning once a place; ours shall come once a reason by themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        yield


def _opt() -> Any:
    config = OPTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=83, ffn_dim=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(config).eval()


class TestModels:
    def test_a_family_that_is_refused(self, ids: Tensor) -> None:
        model = _opt()
        expected = generate(model, input_ids=ids)
        before = dict(model.__dict__)
        with pytest.warns(UserWarning, match=rf"{_INSTEAD}: .*got 'opt'") as seen:
            lazy = lazyllm_ext.apply(model, PRUNING, on_error="dense")
        assert len(seen) == 1
        assert seen[0].filename == __file__
        assert model.__dict__ == before
        with lazy:
            assert_same_generation(generate(model, input_ids=ids), expected, tolerance=0)
        report = lazy.report()
        assert report.refused is not None
        assert "got 'opt'" in report.refused
        assert (report.prompt_tokens, report.tokens_per_stage, report.ttft_seconds) == (0, [], None)
        assert lazyllm_ext.Report.from_dict(report.to_dict()) == report
        assert lazy.schedule == lazyllm_ext.PruningSchedule.from_dict(PRUNING)
        assert lazy.model is model
        for use in (
            lazy.new_cache,
            lambda: lazy.prefill(ids),
            lambda: lazy.load("x"),
            lambda: lazy.decoder,
        ):
            with pytest.raises(NotSupportedError, match="got 'opt'"):
                use()

    def test_no_layer_for_a_boundary(self, ids: Tensor) -> None:
        model = tiny_model("mistral-sliding")
        expected = generate(model, input_ids=ids)
        with pytest.warns(UserWarning, match="expected a model with a full-attention layer"):
            lazyllm_ext.apply(model, "balanced", on_error="dense")
        assert_same_generation(generate(model, input_ids=ids), expected, tolerance=0)

    def test_what_is_wrong_for_both_is_raised(
        self, model: nn.Module, recwarn: pytest.WarningsRecorder
    ) -> None:
        for wrong in (
            lambda: lazyllm_ext.apply(model, "no such schedule", on_error="dense"),
            lambda: lazyllm_ext.apply(_opt(), "no such schedule", on_error="dense"),
            lambda: lazyllm_ext.apply(
                model, {"boundaries": [{"layer": 3, "keep": 0.5}]}, on_error="dense"
            ),
        ):
            with pytest.raises(ValueError, match="schedule"):
                wrong()
        assert not recwarn
        with pytest.raises(TypeError, match="expected a transformers model"):
            lazyllm_ext.apply(None, "dense", on_error="dense")
        with pytest.raises(ValueError, match='on_error: expected "raise" or "dense", got'):
            lazyllm_ext.apply(model, "dense", on_error="warn")
        lazyllm_ext.apply(model, "dense")
        with pytest.raises(ValueError, match="applied already"):
            lazyllm_ext.apply(model, "dense", on_error="dense")


GENERATE: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "guidance": {"guidance_scale": 2.0},
    "attentions": {"output_attentions": True},
    "hidden": {"output_hidden_states": True},
}


@pytest.fixture
def lazy(model: nn.Module) -> Any:
    return lazyllm_ext.apply(model, PRUNING, on_error="dense")


class TestGenerate:
    @pytest.mark.parametrize("case", GENERATE)
    def test_a_mode_that_is_refused(self, lazy: Any, ids: Tensor, case: str) -> None:
        plain = tiny_model("llama")
        plain.config._attn_implementation = lazy.model.config._attn_implementation = "eager"
        expected = generate(plain, input_ids=ids, **GENERATE[case])
        with pytest.warns(UserWarning, match=f"{_INSTEAD}: ") as seen:
            got = generate(lazy.model, input_ids=ids, **GENERATE[case])
        with warnings.catch_warnings():  # once for a reason
            warnings.simplefilter("error", UserWarning)
            generate(lazy.model, input_ids=ids[:, :9], **GENERATE[case])
        assert_same_generation(got, expected, tolerance=0)
        assert got.keys() == expected.keys()
        assert lazy.report().refused in str(seen[0].message)
        generate(lazy.model, input_ids=ids)  # and then LazyLLM goes on
        assert lazy.report().refused is None
        assert lazy.report().tokens_per_stage[2] < lazy.report().tokens_per_stage[0]

    def test_sampling_draws_as_transformers_does(self, lazy: Any, ids: Tensor) -> None:
        torch.manual_seed(2)
        expected = generate(tiny_model("llama"), input_ids=ids, do_sample=True, use_cache=False)
        torch.manual_seed(2)
        with pytest.warns(UserWarning, match="use_cache=False"):
            got = generate(lazy.model, input_ids=ids, do_sample=True, use_cache=False)
        assert_same_generation(got, expected, tolerance=0)

    def test_own_arguments_are_left_out(self, lazy: Any, ids: Tensor) -> None:
        with pytest.warns(UserWarning, match="use_cache=False"):
            generate(
                lazy.model,
                input_ids=ids,
                use_cache=False,
                lazy_schedule="dense",
                lazy_progress=print,
            )

    def test_a_refusal_at_the_first_forward(self, lazy: Any) -> None:
        """The streamer has been told the prompt by then, and hears it once."""
        heard: list[int] = []

        class Streamer(BaseStreamer):
            def put(self, value: Tensor) -> None:
                heard.append(value.numel())

            def end(self) -> None:
                heard.append(0)

        long = torch.randint(3, 83, (1, 130), generator=torch.Generator().manual_seed(3))
        expected = generate(tiny_model("llama"), 4, input_ids=long)
        with pytest.warns(UserWarning, match="expected at most 128 tokens") as seen:
            got = generate(lazy.model, 4, input_ids=long, streamer=Streamer())
        assert len(seen) == 1  # the steps after it are no refusals of their own
        assert_same_generation(got, expected, tolerance=0)
        assert heard == [130, 1, 1, 1, 1, 0]
        assert "at most 128 tokens" in lazy.report().refused

    def test_none_in_the_middle_of_a_generation(self, lazy: Any, ids: Tensor) -> None:
        """What LazyLLM has computed so far would be lost."""
        cache = lazy.new_cache()
        cache.may_fall_back = True  # as generate sets it
        lazy.model(ids, past_key_values=cache, logits_to_keep=1)
        with pytest.raises(NotSupportedError, match="output_attentions"):
            lazy.model(ids[:, :1], past_key_values=cache, output_attentions=True)

    @pytest.mark.parametrize("way", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
    def test_a_refusal_at_the_first_forward_of(self, lazy: Any, way: Any) -> None:
        long = torch.randint(3, 83, (1, 130), generator=torch.Generator().manual_seed(3))
        expected = generate(tiny_model("llama"), 6, input_ids=long, **way)
        with pytest.warns(UserWarning, match="expected at most 128 tokens"):
            got = generate(lazy.model, 6, input_ids=long, **way)
        assert torch.equal(got.sequences, expected.sequences)

    def test_a_cache_of_transformers_goes_on(self, lazy: Any, ids: Tensor) -> None:
        with torch.no_grad():
            past = tiny_model("llama")(ids).past_key_values
        more = torch.cat([ids, ids[:, :3]], dim=1)
        twin = copy.deepcopy(past)
        expected = generate(tiny_model("llama"), input_ids=more, past_key_values=twin)
        with pytest.warns(UserWarning, match="13 tokens computed without LazyLLM"):
            got = generate(lazy.model, input_ids=more, past_key_values=past)
        assert_same_generation(got, expected, tolerance=0)

    def test_a_lazy_cache_is_never_left_behind(self, lazy: Any, ids: Tensor) -> None:
        more = torch.cat([ids, ids[:, :3]], dim=1)
        used = lazy.prefill(ids)
        for cache in (used, lazy.new_cache()):
            with pytest.raises(NotSupportedError, match="use_cache=False"):
                generate(lazy.model, input_ids=more, past_key_values=cache, use_cache=False)
            with pytest.raises(NotSupportedError, match="output_attentions"):
                lazy.model(ids[:, :1], past_key_values=cache, output_attentions=True)
        assert used.get_seq_length() == 13

    def test_nor_within_a_generation_of_transformers(self, lazy: Any, ids: Tensor) -> None:
        """Somebody who calls the model from a callback, with a cache of LazyLLM's."""
        expected = lazy.model(ids[:, :1], past_key_values=lazy.prefill(ids)).logits
        seen: list[Tensor] = []

        def call(batch: int, sequence: Tensor) -> list[int]:
            if not seen:
                cache = lazy.prefill(ids)
                with pytest.raises(NotSupportedError, match="expected no LazyCache within"):
                    lazy.model.generate(ids, past_key_values=cache)
                seen.append(lazy.model(ids[:, :1], past_key_values=cache).logits)
            return list(range(83))

        with pytest.warns(UserWarning, match="use_cache=False"):
            generate(lazy.model, 2, input_ids=ids, use_cache=False, prefix_allowed_tokens_fn=call)
        assert torch.equal(seen[0], expected)

    def test_prefill_raises(self, lazy: Any) -> None:
        with pytest.raises(NotSupportedError, match="at most 128"):
            lazy.prefill(torch.zeros(1, 130, dtype=torch.long))

    def test_in_two_threads(self, lazy: Any, ids: Tensor) -> None:
        """One is left to transformers, the other is not."""
        plain = tiny_model("llama")
        dense = generate(plain, 16, input_ids=ids, use_cache=False)
        pruned = generate(lazy.model, 16, input_ids=ids)
        assert not torch.equal(dense.logits[0], pruned.logits[0])
        got: dict[bool, Any] = {}

        def work(use_cache: bool) -> None:
            for _ in range(3):
                got[use_cache] = generate(lazy.model, 16, input_ids=ids, use_cache=use_cache)

        threads = [threading.Thread(target=work, args=(one,)) for one in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_same_generation(got[True], pruned, tolerance=1e-6)
        assert_same_generation(got[False], dense, tolerance=1e-6)


class TestForward:
    def test_calls_that_are_refused(self, lazy: Any, ids: Tensor) -> None:
        plain = tiny_model("llama")
        for arguments in (
            {"labels": ids},
            {"output_hidden_states": True},
            {},  # logits of all tokens, where tokens are dropped
            {"logits_to_keep": torch.tensor([3, 5])},
            {"attention_mask": torch.ones(3, 1, 13, 13).tril().bool()},
        ):
            with pytest.warns(UserWarning, match=_INSTEAD):
                got = lazy.model(ids, **arguments)
            expected = plain(ids, **arguments)
            assert got.keys() == expected.keys()
            torch.testing.assert_close(got.logits, expected.logits, atol=0, rtol=0)
        assert type(got.past_key_values) is DynamicCache
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the refusal has been told
            step = lazy.model(ids[:, :1], past_key_values=got.past_key_values)
        assert step.past_key_values.get_seq_length() == 14
        assert isinstance(lazy.model(ids, logits_to_keep=1).past_key_values, LazyCache)

    def test_training_mode(self, lazy: Any, ids: Tensor) -> None:
        lazy.model.train().requires_grad_(True)
        with pytest.warns(UserWarning, match="training mode"):
            lazy.model(ids, logits_to_keep=1).logits.sum().backward()
        assert lazy.model.lm_head.weight.grad is not None

    def test_wrong_arguments_are_raised(self, lazy: Any, ids: Tensor) -> None:
        for arguments, message in (
            ({"inputs_embeds": torch.zeros(3, 13, 48), "logits_to_keep": 1}, "got both"),
            ({"attention_mask": torch.ones(2, 13), "logits_to_keep": 1}, r"shape \[3, 13\]"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                lazy.model(ids, **arguments)
            assert not isinstance(caught.value, NotSupportedError)

    def test_by_default_it_raises(self, model: nn.Module, ids: Tensor) -> None:
        lazyllm_ext.apply(model, PRUNING)
        with pytest.raises(NotSupportedError, match="logits_to_keep"):
            model(ids)
        assert CACHE_NAME in model(ids, logits_to_keep=1)

    def test_a_copied_model(self, lazy: Any, ids: Tensor) -> None:
        twin = copy.deepcopy(lazy.model)
        lazy.model.lm_head.weight.data.zero_()
        with pytest.warns(UserWarning, match="use_cache=False"):
            got = generate(twin, input_ids=ids, use_cache=False)
        assert_same_generation(
            got, generate(tiny_model("llama"), input_ids=ids, use_cache=False), tolerance=0
        )
