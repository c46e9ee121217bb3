"""What others put into a model: adapters, quantized weights, half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext

from .tiny import PRUNING, assert_same_generation, generate, keep_all, tiny_model


class TestAdapters:
    """PEFT's LoRA: two adapters, switched and disabled after LazyLLM was applied."""

    @pytest.fixture(params=["llama", "gemma3"])
    def adapted(self, request: pytest.FixtureRequest) -> Any:
        peft = pytest.importorskip("peft", reason="an optional companion: pip install peft")
        config = peft.LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(1)
        adapted = peft.get_peft_model(tiny_model(request.param), config).eval()
        adapted.add_adapter("other", config)
        return adapted

    def test_switched(self, adapted: Any, ids: Tensor) -> None:
        base = adapted.get_base_model()
        expected = {}
        for name in ("default", "other"):
            adapted.set_adapter(name)
            expected[name] = generate(base, input_ids=ids)
        with adapted.disable_adapter():
            expected["none"] = generate(base, input_ids=ids)
        assert not torch.equal(expected["default"].logits[0], expected["other"].logits[0])
        lazyllm_ext.apply(base, keep_all(base))
        for name in ("default", "other"):
            adapted.set_adapter(name)
            assert_same_generation(generate(base, input_ids=ids), expected[name])
            assert_same_generation(generate(adapted, input_ids=ids), expected[name])
        with adapted.disable_adapter():
            assert_same_generation(generate(base, input_ids=ids), expected["none"])

    def test_the_wrapper_is_refused_by_name(self, adapted: Any) -> None:
        with pytest.raises(ValueError, match=r"apply it to model\.get_base_model"):
            lazyllm_ext.apply(adapted, "dense")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_int8_weights(name: str, ids: Tensor) -> None:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="an optional companion: pip install torchao"
    )
    model = tiny_model(name)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    expected = generate(model, input_ids=ids)
    assert not torch.equal(expected.logits[0], generate(tiny_model(name), input_ids=ids).logits[0])
    lazyllm_ext.apply(model, keep_all(model))
    assert_same_generation(generate(model, input_ids=ids), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
def test_half_precision(name: str, dtype: torch.dtype, ids: Tensor) -> None:
    """At most twice transformers' own error, and a pruned run that goes on to its end."""
    exact, model = tiny_model(name), tiny_model(name).to(dtype)
    with torch.no_grad():
        reference = exact(ids, logits_to_keep=1).logits
        plain = model(ids, logits_to_keep=1).logits
    with lazyllm_ext.apply(model, keep_all(model)):
        ours = model(ids, logits_to_keep=1).logits
    assert ours.dtype == dtype
    error = (ours.float() - reference).abs().mean()
    assert error <= 2 * (plain.float() - reference).abs().mean() + 1e-3
    schedule = PRUNING if name == "llama" else {"boundaries": [{"layer": 1, "keep": 0.4}]}
    with lazyllm_ext.apply(model, schedule):
        out = generate(model, input_ids=ids)
    assert out.sequences.shape == (3, 21)
    assert all(bool(step.isfinite().any()) for step in out.logits)


def test_several_devices_are_refused(model: nn.Module) -> None:
    model.model.layers[2].to("meta")
    with pytest.raises(ValueError, match="on the meta device"):
        lazyllm_ext.apply(model, "dense")
