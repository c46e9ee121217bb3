"""What changes of a model, before `apply` or after it, is refused by name."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import transformers.models.llama.modeling_llama as llama
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from torch.utils.module_tracker import ModuleTracker
from transformers import AttentionInterface
from transformers.activations import SiLUActivation
from transformers.generation.streamers import BaseStreamer
from transformers.masking_utils import AttentionMaskInterface

import lazyllm_ext

from .changes import ATTENTION, LAYER, Change, eager, edit_layers, forwarded, hooked, made, set_to
from .every_model import tiny_of
from .tiny import assert_same_generation, generate, tiny_model


def _patched(owner: Any, name: str) -> Change:
    """A function or a method of a class in another's place; the test puts it back."""

    def change(model: Any) -> None:
        own = getattr(owner, name)
        _PATCHES.setattr(owner, name, lambda *args, **kwargs: own(*args, **kwargs))

    return change


def _wrapped(owner: Any, name: str) -> Change:
    """One that says of itself that it is the library's."""

    def change(model: Any) -> None:
        own = getattr(owner, name)
        _PATCHES.setattr(owner, name, functools.wraps(own)(lambda *args, **kw: own(*args, **kw)))

    return change


_PATCHES = pytest.MonkeyPatch()


@pytest.fixture(autouse=True)
def patches() -> Any:
    """Everything that is not a model's own is put back."""
    yield
    _PATCHES.undo()


def _other_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    return query.transpose(1, 2).contiguous(), None


def _attention(name: str, select: bool) -> Change:
    def change(model: Any) -> None:
        _PATCHES.setitem(AttentionInterface._global_mapping, name, _other_attention)
        mask = AttentionMaskInterface._global_mapping["sdpa"]
        _PATCHES.setitem(AttentionMaskInterface._global_mapping, name, mask)
        if select:
            model.set_attn_implementation(name)

    return change


def _other_masks(model: Any) -> None:
    own = AttentionMaskInterface._global_mapping["sdpa"]
    _PATCHES.setitem(AttentionMaskInterface._global_mapping, "sdpa", lambda *a, **kw: own(*a, **kw))


def _hook_of_all(pre: bool) -> Change:
    table = hooks_of_all._global_forward_pre_hooks if pre else hooks_of_all._global_forward_hooks

    def change(model: Any) -> None:
        _PATCHES.setitem(table, 10**9, lambda *args: None)

    return change


def _accelerated(path: str) -> Change:
    def change(model: Any) -> None:
        hooks = pytest.importorskip("accelerate.hooks", reason="an optional companion: accelerate")
        hooks.add_hook_to_module(model.get_submodule(path), hooks.ModelHook())

    return change


def _training(path: str) -> Change:
    return lambda model: model.get_submodule(path).train()


def _sliding(layer: str) -> Change:
    return set_to(f"model.layers.{layer}.self_attn", "sliding_window", 3)


def _compiled(name: str) -> Change:
    return set_to(LAYER, name, lambda module: eager(module))


class _Skipped(nn.Module):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x


class _OtherAttention(llama.LlamaAttention):
    pass


class _OtherNorm(llama.LlamaRMSNorm):
    pass


CALLED = "the module is not called, so it would not run"
REFUSED: dict[str, tuple[str, Change, str]] = {
    "a hook on a layer": ("llama", hooked(LAYER), rf"layers\[1\]: expected no forward .*{CALLED}"),
    "a hook before a layer": ("llama", hooked(LAYER, "pre"), r"layers\[1\]: expected no forward"),
    "a hook on attention": ("llama", hooked(ATTENTION), r"self_attn: expected no forward hook"),
    "a hook before attention": ("llama", hooked(ATTENTION, "pre"), r"self_attn: expected no f"),
    "a hook on the base model": (
        "llama",
        hooked("model"),
        r"model\.model: expected no forward hook",
    ),
    "a hook on the rotation": (
        "llama",
        hooked("model.rotary_emb"),
        r"rotary_emb: expected no for",
    ),
    "a hook on learned positions": ("gpt2", hooked("transformer.wpe"), r"wpe: expected no forward"),
    "a hook on dropout": (
        "gpt2",
        hooked("transformer.h.1.attn.resid_dropout"),
        r"_dropout: expec",
    ),
    "a hook on the first dropout": ("gpt2", hooked("transformer.drop"), r"drop: expected no forw"),
    "a hook on all": ("llama", _hook_of_all(pre=False), r"every module: expected no forward hook"),
    "a hook before all": ("llama", _hook_of_all(pre=True), r"every module: expected no forward h"),
    "a layer's forward": ("llama", forwarded(LAYER), r"layers\[1\]: expected the forward of Llama"),
    "attention's forward": ("llama", forwarded(ATTENTION), r"self_attn: expected the forward of"),
    "the base model's forward": (
        "llama",
        forwarded("model"),
        r"model\.model: expected the forw",
    ),
    "the rotation's forward": ("llama", forwarded("model.rotary_emb"), r"rotary_emb: expected the"),
    "a class of attention": (
        "llama",
        _patched(llama.LlamaAttention, "forward"),
        r"LlamaAttention\.forward: expected its library's own, got .*_patched",
    ),
    "a class of attention, wrapped": (
        "llama",
        _wrapped(llama.LlamaAttention, "forward"),
        r"LlamaAttention\.forward: expected its library's own",
    ),
    "another class's": (
        "llama",
        lambda model: _PATCHES.setattr(llama.LlamaRMSNorm, "forward", nn.LayerNorm.forward),
        r"LlamaRMSNorm\.forward: expected its library's own, got .*LayerNorm\.forward",
    ),
    **{
        f"{name}": ("llama", _patched(kind, "forward"), rf"{name}\.forward: expected its library's")
        for name, kind in (
            ("LlamaForCausalLM", llama.LlamaForCausalLM),
            ("LlamaModel", llama.LlamaModel),
            ("LlamaDecoderLayer", llama.LlamaDecoderLayer),
            ("LlamaMLP", llama.LlamaMLP),
            ("LlamaRMSNorm", llama.LlamaRMSNorm),
            ("LlamaRotaryEmbedding", llama.LlamaRotaryEmbedding),
            ("Linear", nn.Linear),
            ("SiLUActivation", SiLUActivation),
        )
    },
    "a call": ("llama", _patched(nn.Module, "__call__"), r"\.forward: expected its library's own"),
    "a function": ("llama", _patched(llama, "apply_rotary_pos_emb"), r"Attention\.forward: expect"),
    "a function of a function": (
        "llama",
        _patched(llama, "rotate_half"),
        r"Attention\.forward: exp",
    ),
    "PyTorch's attention": (
        "llama",
        _patched(nn.functional, "scaled_dot_product_attention"),
        r"scaled_dot_product_attention: expected PyTorch's own, got .*_patched",
    ),
    "another configuration of the base model": (
        "llama",
        set_to("model", "config", copy.deepcopy),
        r"model\.model\.config: expected the model's own configuration, got another",
    ),
    "another class of attention": (
        "llama",
        set_to(ATTENTION, "__class__", lambda _: _OtherAttention),
        r"self_attn: expected LlamaAttention, got _OtherAttention",
    ),
    "another class of a norm": (
        "llama",
        set_to("model.norm", "__class__", lambda _: _OtherNorm),
        r"model\.norm: expected LlamaRMSNorm, got _OtherNorm",
    ),
    "an attention selected": (
        "llama",
        _attention("mine", select=True),
        r"attention implementation: expected one of transformers' own, got 'mine', .*_other_att",
    ),
    "an attention in place of another": (
        "llama",
        _attention("sdpa", select=False),
        r"attention implementation: expected one of transformers' own, got 'sdpa', .*_other_att",
    ),
    "masks": ("llama", _other_masks, r"attention implementation: expected .* got 'sdpa'"),
    "not causal": ("llama", set_to(ATTENTION, "is_causal", False), r"is_causal: expected True"),
    "a layer in training": ("llama", _training(LAYER), r"layers\[1\]: expected inference mode"),
    "attention in training": ("llama", _training(ATTENTION), r"self_attn: expected inference mod"),
    "dropout in training": ("gpt2", _training("transformer.drop"), r"drop: expected inference"),
    "a window of a layer": ("gemma3", _sliding("0"), r"self_attn: sliding window: expected 7, as"),
    "a window in a full layer": ("gemma3", _sliding("1"), r"self_attn: sliding window: expected 0"),
    "a window": (
        "gemma3",
        set_to("config", "sliding_window", 3),
        r"sliding window: expected 3, as c",
    ),
    "norms that are off": (
        "cohere",
        set_to(ATTENTION, "use_qk_norm", False),
        "use_qk_norm: expected norms that are used, got False",
    ),
    "other heads": (
        "llama",
        set_to("config", "num_attention_heads", 8),
        r"q_proj: expected 96 o",
    ),
    "other heads of keys": (
        "llama",
        set_to("config", "num_key_value_heads", 4),
        "k_proj: expected 48",
    ),
    "a size of heads": ("llama", set_to(ATTENTION, "head_dim", 6), "q_proj: expected 24 outputs"),
    "ALiBi": ("falcon", set_to("transformer", "use_alibi", True), r"alibi: .* is not supported"),
    "an accelerate hook on a layer": ("llama", _accelerated(LAYER), r"layers\[1\]: expected the f"),
    "an accelerate hook on the base": (
        "llama",
        _accelerated("model"),
        r"model\.model: expected th",
    ),
    "a compiled layer": (
        "llama",
        set_to("model.layers", "1", lambda module: eager(module)),
        r"layers\[1\]: expected LlamaDecoderLayer, got OptimizedModule",
    ),
    "a compiled attention": (
        "llama",
        _compiled("self_attn"),
        "LlamaAttention, got OptimizedModule",
    ),
    "a compiled norm": ("llama", _compiled("input_layernorm"), "LlamaRMSNorm, got OptimizedModule"),
    "a layer that does nothing": (
        "llama",
        set_to("model.layers", "1", lambda _: _Skipped()),
        r"layers\[1\]: expected LlamaDecoderLayer, got _Skipped",
    ),
    "one layer twice": (
        "llama",
        lambda model: set_to("model.layers", "2", lambda _: model.model.layers[1])(model),
        r"layers\[2\]\.self_attn\.layer_idx: expected another one than .*, got 1",
    ),
    "no layers that count": (
        "llama",
        set_to("config", "num_hidden_layers", 0),
        r"layers: expected at least one, got 0",
    ),
    "no layers": ("llama", edit_layers(lambda layers: []), r"layers: expected at least one"),
    "float64": ("llama", lambda model: model.double(), r"weights, got torch\.float64"),
    "float64, learned positions": ("gpt2", lambda model: model.double(), r"got torch\.float64"),
    "meta": ("llama", lambda model: model.to("meta"), "on the meta device"),
    "a layer on meta": ("llama", lambda model: model.model.layers[1].to("meta"), "the meta device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, ids: Tensor) -> None:
    """By apply; after it by the next call, in generate before anything is computed."""
    kind, change, message = REFUSED[case]
    model = made(kind)
    change(model)
    with pytest.raises(lazyllm_ext.NotSupportedError, match=message):
        lazyllm_ext.apply(model, "dense")
    _PATCHES.undo()
    model = made(kind)
    lazy = lazyllm_ext.apply(model, "dense")
    past = model(ids, logits_to_keep=1).past_key_values
    change(model)
    for call in (
        lambda: generate(model, 4, input_ids=ids, streamer=_Untouched()),
        lambda: model(ids, logits_to_keep=1),
        lambda: model(ids[:, :1], past_key_values=past),
        lambda: lazy.prefill(ids),
    ):
        with pytest.raises(lazyllm_ext.NotSupportedError, match=message):
            call()


class _Untouched(BaseStreamer):
    def put(self, value: Tensor) -> None:
        raise AssertionError("the refusal came after the streamer was told")

    end = put


@pytest.mark.parametrize(
    "name", ["output_hidden_states", "output_attentions", "output_router_logits"]
)
def test_outputs_that_the_configuration_asks_for(name: str, ids: Tensor) -> None:
    model = tiny_of("mixtral")
    expected = generate(model, 4, input_ids=ids)
    lazyllm_ext.apply(model, "dense")
    setattr(model.config, name, True)
    with pytest.raises(lazyllm_ext.NotSupportedError, match=rf"config\.{name}: expected False"):
        model(ids, logits_to_keep=1)
    model(ids, logits_to_keep=1, **{name: False})
    assert_same_generation(generate(model, 4, input_ids=ids), expected)  # which drops them


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "falcon", "gemma3_text"])
@torch.no_grad()
def test_the_class_of_the_output(kind: str, ids: Tensor) -> None:
    model = tiny_of(kind)
    expected = model(ids)
    lazyllm_ext.apply(model, "dense")
    got = model(ids)
    assert type(got) is type(expected)
    for field in ("aux_loss", "router_logits", "cross_attentions", "hidden_states", "loss"):
        assert hasattr(got, field) == hasattr(expected, field)


def test_a_hook_is_taken_away_again(model: nn.Module, ids: Tensor) -> None:
    lazy = lazyllm_ext.apply(model, "dense")
    expected, decoder = model(ids, logits_to_keep=1), lazy.decoder
    handle = model.model.layers[1].register_forward_hook(lambda *args: None)
    with pytest.raises(lazyllm_ext.NotSupportedError):
        model(ids, logits_to_keep=1)
    handle.remove()
    assert torch.equal(model(ids, logits_to_keep=1).logits, expected.logits)
    assert lazy.decoder is decoder


def test_dense_while_there_is_a_hook(model: nn.Module, ids: Tensor) -> None:
    plain = generate(model, 4, input_ids=ids)
    lazyllm_ext.apply(model, "dense", on_error="dense")
    assert_same_generation(generate(model, 4, input_ids=ids), plain)
    hooked("model.layers.1")(model)
    with pytest.warns(UserWarning, match="expected no forward hook"):
        ours = generate(model, 4, input_ids=ids)
    twin = tiny_model("llama")
    hooked("model.layers.1")(twin)
    assert_same_generation(ours, generate(twin, 4, input_ids=ids), tolerance=0)


def test_operations_are_counted(model: nn.Module, ids: Tensor) -> None:
    """By PyTorch's tracker, whose hooks on all modules only look on."""
    lazyllm_ext.apply(model, "dense")
    expected = model(ids, logits_to_keep=1).logits
    with ModuleTracker():
        assert torch.equal(model(ids, logits_to_keep=1).logits, expected)


def test_an_accelerate_hook_on_the_model_runs(model: nn.Module, ids: Tensor) -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="an optional companion: accelerate")

    class Doubled(hooks.ModelHook):  # type: ignore[misc,name-defined]
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            output.logits = output.logits * 2
            return output

    lazyllm_ext.apply(model, "dense")
    expected = model(ids, logits_to_keep=1).logits
    hooks.add_hook_to_module(model, Doubled())
    assert torch.equal(model(ids, logits_to_keep=1).logits, expected * 2)


def test_a_compiled_call(model: nn.Module, ids: Tensor) -> None:
    """A compiler does not read the look at the model, and the model is what it was."""
    lazyllm_ext.apply(model, "dense")
    expected = model(ids, logits_to_keep=1).logits
    compiled: Any = eager(model)
    assert torch.equal(compiled(ids, logits_to_keep=1).logits, expected)
