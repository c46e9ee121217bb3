"""What others put into a model: adapters, quantized weights, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext
from lazyllm_ext.lab.tools.cost import prefill_operations

from .tiny import PRUNING, assert_same_generation, generate, keep_all, left_padded, tiny_model


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

    def test_an_adapter_for_each_sequence(self, adapted: Any, ids: Tensor) -> None:
        """Whatever PEFT would say of a decoding step's rows: refused before any work."""
        calls: tuple[Any, ...] = (
            lambda: adapted.generate(input_ids=ids, adapter_names=names, max_new_tokens=4),
            lambda: adapted(input_ids=ids, adapter_names=names).logits,
            lambda: adapted(input_ids=ids[:, :1], adapter_names=names).logits,
        )
        names = ["default", "other", "__base__"]
        with torch.no_grad():
            expected = [call() for call in calls]
        base = adapted.get_base_model()
        with lazyllm_ext.apply(base, "dense"):
            for call in calls:
                with pytest.raises(lazyllm_ext.NotSupportedError, match="adapter_names: not supp"):
                    call()
        lazyllm_ext.apply(base, "dense", on_error="dense")
        with pytest.warns(UserWarning, match="adapter_names"):
            got = [call() for call in calls]
        for ours, own in zip(got, expected, strict=True):
            assert torch.equal(ours, own)

    @pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
    def test_virtual_tokens(self, kind: str, ids: Tensor) -> None:
        """Those that are embeddings are tokens like others; those that are keys are refused."""
        peft = pytest.importorskip("peft", reason="an optional companion: pip install peft")
        config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
        tuned = peft.get_peft_model(tiny_model("llama"), config).eval()
        calls: tuple[Any, ...] = (
            lambda: tuned(input_ids=ids).logits,
            lambda: tuned.generate(input_ids=ids, max_new_tokens=4),
        )
        with torch.no_grad():
            expected = [call() for call in calls]
        base = tuned.get_base_model()
        if kind == "PromptTuningConfig":
            lazyllm_ext.apply(base, "dense")
        else:
            with lazyllm_ext.apply(base, "dense"):
                for call in calls:
                    with pytest.raises(lazyllm_ext.NotSupportedError):
                        call()
            lazyllm_ext.apply(base, "dense", on_error="dense")
        for call, own in zip(calls, expected, strict=True):
            with torch.no_grad():
                got = call()
            torch.testing.assert_close(got, own, atol=1e-4, rtol=0)

    def test_a_prefill_is_of_the_adapters_that_were_on(
        self, adapted: Any, ids: Tensor, tmp_path: Path
    ) -> None:
        """Saved with one of them, and loaded as it was, though others were on in between."""
        base = adapted.get_base_model()
        lazy = lazyllm_ext.apply(base, PRUNING if len(base.model.layers) == 4 else "dense")
        path = tmp_path / "document"
        lazy.save(lazy.prefill(ids), path)

        def refused() -> None:
            with pytest.raises(ValueError, match="expected a prefill of this model"):
                lazy.load(path)

        adapted.set_adapter("other")
        refused()
        adapted.set_adapter("default")
        assert lazy.load(path).get_seq_length() == 13
        with adapted.disable_adapter():
            refused()
        assert lazy.load(path).get_seq_length() == 13
        scaling = base.model.layers[1].self_attn.v_proj.scaling
        scaling["default"] *= 2
        refused()
        scaling["default"] /= 2
        assert lazy.load(path).get_seq_length() == 13
        with torch.no_grad():
            base.model.layers[1].mlp.up_proj.lora_B["default"].weight[0] += 1
        refused()

    def test_the_wrapper_means_its_base_model(self, adapted: Any, ids: Tensor) -> None:
        base = adapted.get_base_model()
        expected = generate(adapted, input_ids=ids)
        with lazyllm_ext.apply(adapted, keep_all(base)) as lazy:
            assert lazy.model is base
            assert_same_generation(generate(adapted, input_ids=ids), expected)
            assert lazy.report().prompt_tokens == 39

    @pytest.mark.parametrize(
        "change", ["new target", "own", "merge", "unmerge", "delete", "unload"]
    )
    def test_changed_while_applied(self, adapted: Any, ids: Tensor, change: str) -> None:
        base, peft = adapted.get_base_model(), pytest.importorskip("peft")
        config = peft.LoraConfig(
            r=4, target_modules=["o_proj", "gate_proj", "lm_head"], init_lora_weights=False
        )
        if change == "unmerge":
            adapted.merge_adapter()
        lazy = lazyllm_ext.apply(adapted, keep_all(base))
        generate(base, input_ids=ids)
        if change == "new target":
            adapted.add_adapter("new", config)
            adapted.set_adapter("new")
        elif change == "own":  # as model.add_adapter of transformers does
            peft.inject_adapter_in_model(config, base, "new")
        elif change == "merge":
            adapted.merge_adapter()
        elif change == "unmerge":
            adapted.unmerge_adapter()
        elif change == "delete":
            adapted.delete_adapter("default")
        else:
            assert adapted.merge_and_unload() is base
        base.eval()
        ours = generate(base, input_ids=ids)
        lazy.remove()
        assert_same_generation(ours, generate(base, input_ids=ids))

    def test_norms_that_an_adapter_replaces(self, adapted: Any, ids: Tensor) -> None:
        base, peft = adapted.get_base_model(), pytest.importorskip("peft")
        lazyllm_ext.apply(base, "dense")
        peft.inject_adapter_in_model(
            peft.LNTuningConfig(target_modules=["input_layernorm"]), base, "tuned"
        )
        with pytest.raises(lazyllm_ext.NotSupportedError, match="got LNTuningLayer"):
            generate(base, input_ids=ids)


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


def _quantized(model: nn.Module, kind: str) -> nn.Module:
    """The same model with weights of optimum-quanto or bitsandbytes, but for the output head."""
    if kind.startswith("quanto"):
        quanto = pytest.importorskip(
            "optimum.quanto", reason="an optional companion: pip install optimum-quanto"
        )
        quanto.quantize(model, weights=kind.split()[1], exclude="lm_head")
        quanto.freeze(model)
        return model
    bitsandbytes = pytest.importorskip(
        "bitsandbytes", reason="an optional companion: pip install bitsandbytes"
    )

    def make(linear: nn.Linear) -> nn.Module:
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        made: Any
        if kind == "bitsandbytes int8":
            made = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        else:
            made = bitsandbytes.nn.Linear4bit(*sizes, torch.float32, quant_type=kind.split()[1])
        made.load_state_dict(linear.state_dict())
        return made.to("cpu")

    for layer in model.model.layers:
        for owner in (layer.self_attn, layer.mlp):
            for name, child in list(owner.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(owner, name, make(child))
    return model


QUANTIZED = [
    *("quanto qint8", "quanto qint4"),
    *("bitsandbytes int8", "bitsandbytes nf4", "bitsandbytes fp4"),
]


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2"])
def test_quantized_weights(name: str, kind: str, ids: Tensor) -> None:
    """They compute something else than float32, and LazyLLM computes the same."""
    model = _quantized(tiny_model(name), kind)
    expected = generate(model, input_ids=ids)
    plain = generate(tiny_model(name), input_ids=ids)
    assert float((expected.logits[0] - plain.logits[0]).abs().max()) > 0.05
    with lazyllm_ext.apply(model, keep_all(model)):
        assert_same_generation(generate(model, input_ids=ids), expected)
        together = generate(model, **left_padded([ids[0], ids[1, :5]])).logits
        alone = generate(model, input_ids=ids[1:2, :5]).logits
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[1], theirs[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_of_a_pruned_run(kind: str, ids: Tensor, tmp_path: Path) -> None:
    """A prefill is saved and found again; other weights are told apart; operations are Llama's."""
    model = _quantized(tiny_model("llama"), kind)
    lazy = lazyllm_ext.apply(model, PRUNING)
    cache = lazy.prefill(ids)
    lazy.save(cache, tmp_path / "x")
    more = torch.cat([ids, ids[:, :4]], dim=1)
    got, again = (
        generate(model, input_ids=more, past_key_values=past)
        for past in (cache.copy(), lazy.load(tmp_path / "x"))
    )
    assert_same_generation(again, got, tolerance=0)
    assert lazy.report().tokens_per_stage[2] < lazy.report().tokens_total
    plain = lazyllm_ext.apply(tiny_model("llama"), PRUNING)
    with pytest.raises(ValueError, match="expected a prefill of this model"):
        plain.load(tmp_path / "x")
    active = [torch.arange(8), torch.arange(4)]
    assert prefill_operations(lazy.decoder, 13, active) == prefill_operations(
        plain.decoder, 13, active
    )


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_not_exported(kind: str) -> None:
    model = _quantized(tiny_model("llama"), kind)
    with pytest.raises(ValueError, match="use weights that are not quantized"):
        lazyllm_ext.LazyDecoder.from_model(model, "dense", export=True)


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


@pytest.mark.parametrize("layer", [0, -1])
def test_a_hook_on_a_norm_runs_once_a_step(layer: int, ids: Tensor) -> None:
    model, calls = tiny_model("llama"), []
    with lazyllm_ext.apply(model, "dense"):
        norm = model.model.layers[layer].input_layernorm
        norm.register_forward_hook(lambda *_: calls.append(1))
        model(ids, logits_to_keep=1)
    assert calls == [1]
