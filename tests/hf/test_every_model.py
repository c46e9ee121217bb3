"""Every causal language model class: equal to transformers' own, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import lazyllm_ext
from lazyllm_ext.hf import SUPPORTED
from lazyllm_ext.hf.models.families import REASONS
from lazyllm_ext.lab.tools.cost import prefill_operations

from .every_model import (
    EVERY_TYPE,
    HERE,
    OLD,
    REFUSED,
    REFUSED_HERE,
    VARIANTS,
    check_right,
    refusal,
    row,
    tiny_of,
)
from .tiny import generate, left_padded


@pytest.mark.parametrize("kind", HERE)
def test_right(kind: str) -> None:
    check_right(tiny_of(kind))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in HERE for name in VARIANTS.get(kind, {})]
)
def test_right_in_another_configuration(kind: str, name: str) -> None:
    check_right(tiny_of(kind, **VARIANTS[kind][name]))


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(kind: str) -> None:
    assert refusal(kind)


def test_another_layout_is_refused() -> None:
    for kind in REFUSED_HERE:
        with pytest.raises(ValueError, match="expected the modules"):
            lazyllm_ext.apply(tiny_of(kind), "dense")


def test_every_description_is_of_a_type() -> None:
    """An older transformers lacks some."""
    missing = {*SUPPORTED} - {CONFIG_MAPPING[kind].model_type for kind in (*HERE, *REFUSED_HERE)}
    assert OLD or not missing


def test_no_reason_for_what_is_supported() -> None:
    assert not set(REASONS) & set(SUPPORTED)


@pytest.mark.parametrize("kind", HERE)
def test_pruned_rows_of_a_batch_give_what_they_give_alone(kind: str) -> None:
    """And all that is dropped is dropped: fewer tokens in the later stages."""
    model = tiny_of(kind)
    ids = torch.randint(3, 83, (2, 21), generator=torch.Generator().manual_seed(9))
    prompts = [ids[0], ids[1, :14]]
    decoder: Any = lazyllm_ext.LazyDecoder.from_model(model, "dense")
    full = [layer for layer, one in enumerate(decoder.layers) if one.window == 0][:-1]
    if not full:
        pytest.fail(f"{kind}: the tiny model has no layer for a boundary")
    schedule = {"boundaries": [{"layer": full[0], "keep": 0.4}], "window": 2, "pool": 3}
    with lazyllm_ext.apply(model, schedule) as lazy:
        together = generate(model, 5, **left_padded(prompts))
        first, second = lazy.report().tokens_per_stage
        assert second < first
        for row, prompt in enumerate(prompts):
            alone = generate(model, 5, input_ids=prompt[None])
            assert torch.equal(together.sequences[row, 21:], alone.sequences[0, len(prompt) :])
            for both, single in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(both[row], single[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("olmo", {"clip_qkv": 8.0}, r"config\.clip_qkv=8\.0 is not supported"),
        ("stablelm", {"qk_layernorm": True}, r"config\.qk_layernorm=True is not supported"),
        (
            "ministral3",
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "llama_4_scaling_beta": 0.1,
                }
            },
            "llama_4_scaling_beta",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_configurations_that_are_refused(kind: str, fields: Any, message: str) -> None:
    if kind not in HERE:
        pytest.skip("not in this transformers")
    with pytest.raises(ValueError, match=message):
        lazyllm_ext.apply(tiny_of(kind, **fields), "dense")


def test_layer_types_that_are_refused() -> None:
    model = tiny_of("llama")
    model.config.layer_types = ["full_attention"] * 3 + ["chunked_attention"]
    with pytest.raises(ValueError, match=r"layer_types: expected .* got 'chunked_attention'"):
        lazyllm_ext.apply(model, "dense")


@pytest.mark.parametrize("kind", ["bloom", "gpt_oss", "mamba", "opt"])
def test_whole_models_are_refused_too(kind: str) -> None:
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
    with pytest.raises(ValueError, match=rf"got '{kind}' \(.*\): {REASONS[kind][:20]}"):
        lazyllm_ext.apply(model.eval(), "dense")


def test_the_page_is_current() -> None:
    """scripts/make_families_page.py writes it; other versions of transformers have other types."""
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    if f"transformers {transformers.__version__}," in page:
        assert rows.keys() == EVERY_TYPE.keys()
    both = rows.keys() & EVERY_TYPE.keys()
    assert len(both) > 100
    for kind in both:
        assert rows[kind] == row(kind)


def test_a_fused_projection_counts_once() -> None:
    """Phi-3's layer has Llama's operations, whatever its projections are called."""
    llama, phi3 = (
        prefill_operations(lazyllm_ext.LazyDecoder.from_model(tiny_of(kind), "dense"), 100)
        for kind in ("llama", "phi3")
    )
    assert phi3 == llama


def test_a_fused_projection_that_is_not_plain_is_called() -> None:
    """As adapters are: a module that computes something else."""

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for kind, path in (("phi3", "self_attn.qkv_proj"), ("gpt_neox", "attention.query_key_value")):
        if kind in HERE:
            model = tiny_of(kind)
            for layer in getattr(model, model.base_model_prefix).layers:
                layer.get_submodule(path).__class__ = Doubled
            check_right(model)
