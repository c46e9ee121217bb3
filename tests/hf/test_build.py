"""The decoder of a model, around its own modules or around scriptable ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext
from lazyllm_ext import LazyDecoder
from lazyllm_ext.decoder.modules import Projection
from lazyllm_ext.hf.models.modules import OwnMLP

from .tiny import MODELS, assert_same_generation, generate, keep_all, tiny_model


def _logits(decoder: LazyDecoder, ids: Tensor) -> Tensor:
    rows, counts = ids.reshape(-1), [ids.size(1)] * ids.size(0)
    positions = torch.arange(ids.size(1)).repeat(ids.size(0))
    with torch.no_grad():
        hidden = decoder.embed_tokens(rows)
        return decoder.step(hidden, positions, counts, decoder.new_state(ids.size(0), hidden))


@pytest.mark.parametrize("name", MODELS)
def test_for_export(name: str, ids: Tensor) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        expected = model(ids, logits_to_keep=1).logits[:, 0]
    decoder = LazyDecoder.from_model(model, keep_all(model), export=True)
    torch.testing.assert_close(_logits(decoder, ids), expected, atol=1e-4, rtol=0)
    for layer in decoder.layers:
        torch.jit.script(layer.mlp)
    torch.jit.script(decoder.embed)


@pytest.mark.parametrize("name", ["llama-bias", "gemma3"])
@pytest.mark.parametrize("export", [False, True])
def test_parameters_are_shared(name: str, export: bool) -> None:
    model = tiny_model(name)
    decoder = LazyDecoder.from_model(model, "dense", export=export)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in decoder.parameters()} == own


def test_own_modules_are_used() -> None:
    model = tiny_model("llama")
    decoder = LazyDecoder.from_model(model, "dense")
    layer = model.model.layers[1]
    assert decoder.layers[1].mlp.mlp is layer.mlp
    assert decoder.layers[1].mlp.up.linear is layer.mlp.up_proj
    assert decoder.layers[1].q_proj.linear is layer.self_attn.q_proj
    assert decoder.embed is model.model.embed_tokens
    assert decoder.lm_head.linear is model.lm_head


@pytest.mark.parametrize(
    "path", ["lm_head", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.gate_proj"]
)
def test_an_own_class_is_called(path: str, ids: Tensor) -> None:
    """As adapters and quantized linears are: modules that compute something else."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = tiny_model("llama")
    model.get_submodule(path).__class__ = Doubled
    expected = generate(model, input_ids=ids)
    lazyllm_ext.apply(model, "dense")
    assert_same_generation(generate(model, input_ids=ids), expected, tolerance=1e-4)


@pytest.mark.parametrize("path", ["self_attn.q_proj", "mlp.down_proj", "mlp", "input_layernorm"])
def test_a_hook_that_comes_later_runs(path: str, ids: Tensor) -> None:
    model = tiny_model("llama")
    lazyllm_ext.apply(model, "dense")
    module = model.model.layers[2].get_submodule(path)
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    got = generate(model, input_ids=ids)
    plain = tiny_model("llama")
    plain.model.layers[2].get_submodule(path).register_forward_hook(
        lambda module, inputs, output: 2 * output
    )
    assert_same_generation(got, generate(plain, input_ids=ids), tolerance=1e-4)


def _calls_of_layers(model: Any, ids: Tensor) -> int:
    """How often a whole layer is one call while the second of two new tokens is computed."""
    counts = []
    for new_tokens in (1, 2):
        with torch.profiler.profile() as profile:
            model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        names = [event.name for event in profile.events()]
        counts.append(names.count("lazyllm::decoder_layer_"))
    return counts[1] - counts[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_token_takes_one_call_for_each_plain_layer(family: str, ids: Tensor) -> None:
    model = tiny_model(family)
    layers = len(model.model.layers)
    lazy = lazyllm_ext.apply(model, keep_all(model))
    boundaries = len(keep_all(model)["boundaries"])
    assert _calls_of_layers(model, ids) == layers - boundaries
    lazy.remove()
    lazyllm_ext.apply(model, "dense")
    assert _calls_of_layers(model, ids) == layers
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)
    assert _calls_of_layers(model, ids) == layers - 1
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: None)
    assert _calls_of_layers(model, ids) == layers - 2
    model.model.layers[2].post_attention_layernorm.register_forward_hook(lambda *_: None)
    assert _calls_of_layers(model, ids) == layers - 3


@pytest.mark.parametrize("path", ["self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_a_bias_that_comes_later_counts(path: str, ids: Tensor) -> None:
    model = tiny_model("llama")
    lazy = lazyllm_ext.apply(model, "dense")
    linear = model.model.layers[1].get_submodule(path)
    linear.bias = nn.Parameter(torch.randn(linear.out_features), requires_grad=False)
    got = generate(model, input_ids=ids)
    lazy.remove()
    assert_same_generation(got, generate(model, input_ids=ids), tolerance=1e-4)


def test_parts_of_the_decoder_that_are_changed_count(ids: Tensor) -> None:
    """As by quantize_dynamic, and by hooks on what stands around the model's own modules."""
    expected = _logits(LazyDecoder.from_model(tiny_model("llama"), "dense"), ids)
    double = nn.Linear(48, 48, bias=False)
    for change in (
        lambda layer: setattr(layer.q_proj, "linear", double),
        lambda layer: setattr(layer, "q_proj", Projection(double)),
        lambda layer: setattr(layer, "mlp", nn.Identity()),
        lambda layer: layer.input_norm.register_forward_hook(lambda *of: 2 * of[2]),
        lambda layer: layer.k_proj.register_forward_hook(lambda *of: 2 * of[2]),
        lambda layer: layer.mlp.register_forward_hook(lambda *of: 2 * of[2]),
    ):
        decoder = LazyDecoder.from_model(tiny_model("llama"), "dense")
        change(decoder.layers[0])
        in_calls = _logits(decoder, ids)
        assert (in_calls - expected).abs().max() > 1e-3
        for layer in decoder.layers:
            layer.one_call = False
        torch.testing.assert_close(in_calls, _logits(decoder, ids), atol=1e-5, rtol=0)


@torch.no_grad()
def test_rows_of_other_strides() -> None:
    model = tiny_model("llama")
    embeds = torch.randn(1, 48, 3).transpose(1, 2)
    expected = model(inputs_embeds=embeds).logits
    lazyllm_ext.apply(model, "dense")
    got = model(inputs_embeds=embeds).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_many_rows_of_an_mlp_go_through_in_blocks() -> None:
    mlp = tiny_model("llama").model.layers[0].mlp
    parts = OwnMLP(mlp)
    x = torch.randn(2 * parts.block_rows + 7, 48)
    torch.testing.assert_close(parts(x), mlp(x), atol=1e-5, rtol=1e-5)


def test_windows_and_boundaries() -> None:
    model = tiny_model("gemma3")
    decoder = LazyDecoder.from_model(model, keep_all(model))
    assert [layer.window for layer in decoder.layers] == [7, 0, 7, 0, 0, 7]
    of_first = [layer.rope == decoder.layers[0].rope for layer in decoder.layers]
    assert of_first == [True, False, True, False, False, True]
    assert decoder.boundary_at == [-1, 0, -1, 1, 2, -1]
    with pytest.raises(ValueError, match="layer 2, which attends within a sliding window"):
        LazyDecoder.from_model(model, {"boundaries": [{"layer": 2, "keep": 0.5}]})


class _Other(nn.Linear):
    pass


def test_export_refuses_what_it_cannot_script() -> None:
    for path in ("lm_head", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj"):
        model = tiny_model("llama")
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, _Other(4, 4))
        with pytest.raises(ValueError, match=f"export: {name}: expected Linear, got _Other"):
            LazyDecoder.from_model(model, "dense", export=True)
    model = tiny_model("llama")
    model.model.layers[0].mlp = nn.Identity()
    with pytest.raises(ValueError, match=r"export: mlp: expected a gated MLP .*, got Identity"):
        LazyDecoder.from_model(model, "dense", export=True)
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = nn.Hardswish()
    with pytest.raises(ValueError, match=r"export: activation: expected .* got Hardswish"):
        LazyDecoder.from_model(model, "dense", export=True)
    model = tiny_model("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="export: mlp: expected no hook and the forward of its"):
        LazyDecoder.from_model(model, "dense", export=True)
