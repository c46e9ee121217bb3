"""Models that see images: their language model runs LazyLLM, or they are refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

import lazyllm_ext
from lazyllm_ext import NotSupportedError
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.models.families import WRAPPERS
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .seeing import SEEING, seen
from .tiny import assert_same_generation, generate

KEEP_ALL = {"boundaries": [{"layer": 1, "keep": 1.0}], "window": 3, "pool": 3}
DROP = {"boundaries": [{"layer": 1, "keep": 0.4}], "window": 2, "pool": 3}


@pytest.fixture
def llava() -> Any:
    return SEEING["llava"].make()


def _another_image(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**inputs, "pixel_values": inputs["pixel_values"] * -1.0}


@pytest.mark.parametrize("name", SEEING)
def test_with_nothing_dropped(name: str) -> None:
    """A left-padded batch; the image must matter, or nothing is shown."""
    model = SEEING[name].make()
    inputs = seen(name, [9, 5])
    expected = generate(model, 6, **inputs)
    blind = generate(model, 6, **_another_image(inputs))
    assert float((expected.logits[0] - blind.logits[0]).abs().max()) > 0.1
    with lazyllm_ext.apply(model, KEEP_ALL) as lazy:
        assert_same_generation(generate(model, 6, **inputs), expected)
        assert lazy.report().tokens_per_stage[1] == lazy.report().tokens_total
    assert_same_generation(generate(model, 6, **inputs), expected, tolerance=0)


@pytest.mark.parametrize("name", SEEING)
def test_pruned_rows_of_a_batch_give_what_they_give_alone(name: str) -> None:
    model = SEEING[name].make()
    inputs = seen(name, [9, 5])
    with lazyllm_ext.apply(model, DROP) as lazy:
        together = generate(model, 6, **inputs)
        first, second = lazy.report().tokens_per_stage
        assert second < first
        for row in range(2):
            alone = {key: value[row : row + 1] for key, value in inputs.items()}
            there = alone["attention_mask"][0].bool()
            for key in ("input_ids", "attention_mask"):
                alone[key] = alone[key][:, there]
            single = generate(model, 6, **alone)
            for ours, theirs in zip(together.logits, single.logits, strict=True):
                torch.testing.assert_close(ours[row], theirs[0], atol=1e-4, rtol=0)


def test_every_type_is_tested() -> None:
    assert {SEEING[name].make().config.model_type for name in SEEING} == set(WRAPPERS)


class TestWays:
    @pytest.mark.parametrize(
        "way",
        [
            {"num_beams": 3},
            {"do_sample": True, "num_return_sequences": 2},
            {"prompt_lookup_num_tokens": 2},
        ],
    )
    def test_with_nothing_dropped(self, llava: Any, way: dict[str, Any]) -> None:
        inputs = seen("llava", [9])
        torch.manual_seed(3)
        expected = generate(llava, 6, **inputs, **way)
        lazyllm_ext.apply(llava, KEEP_ALL)
        torch.manual_seed(3)
        assert_same_generation(generate(llava, 6, **inputs, **way), expected)

    def test_a_call(self, llava: Any) -> None:
        inputs = seen("llava", [9, 5])
        expected = llava(**inputs, logits_to_keep=2)
        lazyllm_ext.apply(llava, KEEP_ALL)
        got = llava(**inputs, logits_to_keep=2)
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=0)
        assert type(got) is type(expected)
        cache = got[CACHE_NAME]
        assert isinstance(cache, LazyCache)
        assert cache.report().prompt_tokens == 2 * 18 + 9 + 5
        assert CACHE_NAME not in llava(**inputs, logits_to_keep=1, use_cache=False)

    def test_embeddings_instead_of_ids(self, llava: Any) -> None:
        embeds = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(2)) * 0.2
        expected = generate(llava, 6, inputs_embeds=embeds)
        lazyllm_ext.apply(llava, KEEP_ALL)
        assert_same_generation(generate(llava, 6, inputs_embeds=embeds), expected)

    @pytest.mark.parametrize("schedule", [KEEP_ALL, DROP])
    def test_an_image_that_is_read_once(self, llava: Any, schedule: Any, tmp_path: Path) -> None:
        inputs = seen("llava", [3])
        question = torch.tensor([[11, 12, 13, 14]])
        whole = torch.cat([inputs["input_ids"], question], dim=1)
        lazy = lazyllm_ext.apply(llava, schedule)
        cache = lazy.prefill(**inputs)
        lazy.save(cache, tmp_path / "image")
        loaded = lazy.load(tmp_path / "image")
        got, again = (
            generate(llava, 6, input_ids=whole, past_key_values=past.copy())
            for past in (cache, loaded)
        )
        assert_same_generation(again, got, tolerance=0)
        if schedule is KEEP_ALL:
            fresh = generate(llava, 6, **{**inputs, "input_ids": whole, "attention_mask": None})
            assert_same_generation(got, fresh)

    def test_a_schedule_of_its_own(self, llava: Any) -> None:
        inputs = seen("llava", [9, 5])
        with lazyllm_ext.apply(llava, DROP):
            expected = generate(llava, 6, **inputs)
        lazy = lazyllm_ext.apply(llava, "dense")
        got = generate(llava, 6, **inputs, lazy_schedule=DROP)
        assert_same_generation(got, expected, tolerance=0)
        assert lazy.report().boundary_layers == [1]


class TestApply:
    def test_everything_is_put_back(self, llava: Any) -> None:
        before, within = dict(llava.__dict__), dict(llava.model.language_model.__dict__)
        lazy = lazyllm_ext.apply(llava, DROP)
        with pytest.raises(ValueError, match="applied already"):
            lazyllm_ext.apply(llava, DROP)
        lazy.remove()
        assert llava.__dict__ == before
        assert llava.model.language_model.__dict__ == within
        other = lazyllm_ext.apply(llava, KEEP_ALL)
        lazy.remove()  # does nothing to the other one
        assert generate(llava, 2, **seen("llava", [3])).sequences.shape[1] == 2 + 16 + 3 + 2
        assert other.report().prompt_tokens == 21

    def test_a_copied_model_runs_its_own_weights(self, llava: Any) -> None:
        inputs = seen("llava", [9])
        lazyllm_ext.apply(llava, DROP)
        expected = generate(llava, 6, **inputs)
        twin = copy.deepcopy(llava)
        for parameter in llava.parameters():
            parameter.data.zero_()
        assert_same_generation(generate(twin, 6, **inputs), expected, tolerance=0)

    def test_the_language_model_by_itself_is_transformers(self, llava: Any) -> None:
        embeds = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(2))
        language = llava.model.language_model
        expected = language(inputs_embeds=embeds).last_hidden_state
        lazyllm_ext.apply(llava, DROP)
        assert torch.equal(language(inputs_embeds=embeds).last_hidden_state, expected)

    def test_on_error_dense(self, llava: Any) -> None:
        inputs = seen("llava", [9, 5])
        plain = SEEING["llava"].make()
        lazy = lazyllm_ext.apply(llava, DROP, on_error="dense")
        expected = generate(plain, 6, **inputs, use_cache=False)
        with pytest.warns(UserWarning, match="use_cache=False"):
            got = generate(llava, 6, **inputs, use_cache=False)
        assert_same_generation(got, expected, tolerance=0)
        assert lazy.report().refused
        with pytest.warns(UserWarning, match="logits_to_keep: expected at least 1"):
            logits = llava(**inputs).logits
        assert torch.equal(logits, plain(**inputs).logits)


class _Own(LlavaForConditionalGeneration):
    pass


class TestRefused:
    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("gemma3", "attend to each other both ways .* load its text as Gemma3ForCausalLM"),
            ("paligemma", "attend to each other both ways"),
            ("qwen2_vl", r"positions of several axes \(mrope\)"),
            ("qwen2_5_vl", r"positions of several axes \(mrope\)"),
            ("qwen3_vl", r"positions of several axes \(mrope\)"),
            ("blip-2", "its layers are not described"),
        ],
    )
    def test_types(self, kind: str, message: str) -> None:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind))
        with pytest.raises(NotSupportedError, match=f"got '{kind}'.*: .*{message}"):
            lazyllm_ext.apply(model.eval(), "dense")

    def test_around_another_language_model(self, llava: Any) -> None:
        llava.model.language_model.config.model_type = "opt"
        with pytest.raises(NotSupportedError, match=r"model\.language_model: .* got 'opt'"):
            lazyllm_ext.apply(llava, "dense")

    def test_another_class(self, llava: Any) -> None:
        own = _Own(llava.config).eval()
        with pytest.raises(NotSupportedError, match="LlavaForConditionalGeneration, got _Own"):
            lazyllm_ext.apply(own, "dense")

    def test_changed_layers(self, llava: Any) -> None:
        llava.model.language_model.layers[1].input_layernorm = nn.LayerNorm(48)
        with pytest.raises(
            NotSupportedError, match=r"model\.language_model\.layers\[1\]\.input_layernorm"
        ):
            lazyllm_ext.apply(llava, "dense")

    def test_calls(self, llava: Any) -> None:
        lazyllm_ext.apply(llava, DROP)
        inputs = seen("llava", [9, 5])
        for arguments, message in (
            ({"labels": inputs["input_ids"]}, "labels"),
            ({"output_hidden_states": True}, "output_hidden_states"),
            ({}, "logits_to_keep"),
            ({"logits_to_keep": 1, "cu_seq_lens_q": torch.ones(2)}, "cu_seq_lens_q"),
        ):
            with pytest.raises(NotSupportedError, match=message):
                llava(**inputs, **arguments)

    def test_export(self, llava: Any) -> None:
        with pytest.raises(NotSupportedError, match="export: expected a language model by itself"):
            lazyllm_ext.LazyDecoder.from_model(llava, "dense", export=True)
