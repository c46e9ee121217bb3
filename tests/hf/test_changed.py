"""What changes of a model, before `apply` or after it, is honoured or refused by name."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
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

from .every_model import REFUSED_HERE, tiny_of
from .tiny import assert_same_generation, generate, tiny_model

Change = Callable[[Any], object]


def _set(path: str, name: str, value: Any) -> Change:
    """Another value of an attribute, or what a function makes of the one that is there."""

    def change(model: Any) -> None:
        owner = model.config if path == "config" else model.get_submodule(path)
        now = value(getattr(owner, name)) if callable(value) else value
        setattr(owner, name, now)

    return change


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda value: value * factor


def _hook(path: str, kind: str = "forward") -> Change:
    """A hook that changes what goes in or comes out, in the last column."""

    def pre(module: nn.Module, args: Any) -> Any:
        return (_last(args[0]), *args[1:])

    def post(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return _last(output)
        return (_last(output[0]), *output[1:])

    def change(model: Any) -> None:
        module = model.get_submodule(path)
        if kind == "pre":
            module.register_forward_pre_hook(pre)
        else:
            module.register_forward_hook(post)

    return change


def _last(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return (x + 1) % 83
    x = x.clone()
    x[:, -1] *= 1.5
    return x


def _forward(path: str) -> Change:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        own = module.forward
        module.forward = lambda *args, **kwargs: own(*args, **kwargs)

    return change


def _parameter(path: str, name: str = "weight") -> Change:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        setattr(module, name, nn.Parameter(getattr(module, name) * 1.5, requires_grad=False))

    return change


def _layers(edit: Callable[[list[nn.Module]], list[nn.Module]]) -> Change:
    def change(model: Any) -> None:
        model.model.layers = nn.ModuleList(edit(list(model.model.layers)))

    return change


def _swap_in_place(model: Any) -> None:
    layers = model.model.layers
    layers[1], layers[2] = layers[2], layers[1]


def _delete_in_place(model: Any) -> None:
    del model.model.layers[1]


def _insert(model: Any) -> None:
    new = tiny_model("llama").model.layers[3]
    with torch.no_grad():
        new.mlp.up_proj.weight.mul_(1.5)
    new.self_attn.layer_idx = 4
    model.model.layers.insert(1, new)
    model.config.num_hidden_layers = 5


def _state(assign: bool) -> Change:
    def change(model: Any) -> None:
        state = {name: tensor * 1.25 for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)
        model.requires_grad_(False)

    return change


def _in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
        model.model.rotary_emb.inv_freq.mul_(0.5)


def _another_head(model: Any) -> None:
    model.lm_head = nn.Linear(48, 83, bias=True)


LAYER, ATTENTION = "model.layers.1", "model.layers.1.self_attn"

FOLLOWED: dict[str, tuple[str, Change]] = {
    "scaling": ("llama", _set(ATTENTION, "scaling", _times(1.7))),
    "epsilon": ("llama", _set(f"{LAYER}.input_layernorm", "variance_epsilon", 0.3)),
    "epsilon of the final norm": ("llama", _set("model.norm", "variance_epsilon", 0.3)),
    "epsilon of head norms": ("qwen3", _set(f"{ATTENTION}.q_norm", "variance_epsilon", 0.3)),
    "epsilon of a layer norm": ("phi", _set(f"{LAYER}.input_layernorm", "eps", 0.3)),
    "rotation's scale": ("llama", _set("model.rotary_emb", "attention_scaling", 1.5)),
    "frequencies": ("llama", _set("model.rotary_emb", "inv_freq", _times(0.5))),
    "soft cap": ("gemma3", _set("config", "final_logit_softcapping", 2.0)),
    "no soft cap": ("gemma3", _set("config", "final_logit_softcapping", None)),
    "soft cap of attention": ("gemma2", _set(ATTENTION, "attn_logit_softcapping", 0.7)),
    "scale of embeddings": ("granite", _set("model", "embedding_multiplier", 5.0)),
    "scale of residuals": ("granite", _set(LAYER, "residual_multiplier", 1.1)),
    "scale of logits": ("granite", _set("config", "logits_scaling", 3.0)),
    "scale of logits, an attribute": ("cohere", _set("", "logit_scale", 0.5)),
    "a configuration that nobody reads": ("granite", _set("config", "embedding_multiplier", 9.0)),
    "parallel": ("gpt_neox", _set("gpt_neox.layers.1", "use_parallel_residual", False)),
    "fewer layers": ("llama", _set("config", "num_hidden_layers", 3)),
    "layers swapped": ("llama", _swap_in_place),
    "layers in another order": ("llama", _layers(lambda layers: layers[::-1])),
    "a layer deleted": ("llama", _delete_in_place),
    "a layer inserted": ("llama", _insert),
    "a layer replaced": ("llama", _set("model.layers", "2", lambda layer: _scaled(layer))),
    "a projection replaced": ("llama", _set(ATTENTION, "q_proj", lambda module: _scaled(module))),
    "an MLP replaced": ("llama", _set(LAYER, "mlp", lambda module: _scaled(module))),
    "an activation": ("llama", _set(f"{LAYER}.mlp", "act_fn", lambda _: nn.Tanh())),
    "an activation of one's own": ("llama", _set(f"{LAYER}.mlp", "act_fn", lambda _: _Cubed())),
    "a norm replaced": ("llama", _set("model", "norm", lambda module: _scaled(module))),
    "an embedding replaced": ("llama", _set("model", "embed_tokens", lambda one: _scaled(one))),
    "a head replaced": ("llama", _another_head),
    "a norm's weight": ("llama", _parameter(f"{LAYER}.input_layernorm")),
    "a head norm's weight": ("qwen3", _parameter(f"{ATTENTION}.k_norm")),
    "a projection's weight": ("llama", _parameter(f"{ATTENTION}.o_proj")),
    "an embedding's weight": ("llama", _parameter("model.embed_tokens")),
    "weights in place": ("llama", _in_place),
    "a state loaded": ("llama", _state(assign=False)),
    "a state assigned": ("llama", _state(assign=True)),
    "bfloat16": ("llama", lambda model: model.to(torch.bfloat16)),
    "bfloat16, learned positions": ("gpt2", lambda model: model.to(torch.bfloat16)),
    "more tokens": ("llama", lambda model: model.resize_token_embeddings(100)),
    "more tokens, tied": ("qwen2", lambda model: model.resize_token_embeddings(100)),
    "a hook on a projection": ("llama", _hook(f"{ATTENTION}.q_proj")),
    "a hook before a projection": ("llama", _hook(f"{LAYER}.mlp.up_proj", "pre")),
    "a hook on a fused projection": ("phi3", _hook(f"{ATTENTION}.qkv_proj")),
    "a hook on a norm": ("llama", _hook(f"{LAYER}.input_layernorm")),
    "a hook before a norm": ("llama", _hook(f"{LAYER}.post_attention_layernorm", "pre")),
    "a hook on a layer norm": ("phi", _hook(f"{LAYER}.input_layernorm")),
    "a hook on a head norm": ("qwen3", _hook(f"{ATTENTION}.q_norm")),
    "a hook on an MLP": ("llama", _hook(f"{LAYER}.mlp")),
    "a hook on experts": ("mixtral", _hook(f"{LAYER}.mlp")),
    "another class of an MLP": ("llama", _set(f"{LAYER}.mlp", "__class__", lambda _: _OtherMLP)),
    "another class of an activation": (
        "llama",
        _set(f"{LAYER}.mlp.act_fn", "__class__", lambda _: _OtherActivation),
    ),
    "a hook on an activation": ("llama", _hook(f"{LAYER}.mlp.act_fn")),
    "a hook on the final norm": ("llama", _hook("model.norm")),
    "a hook on the head": ("llama", _hook("lm_head")),
    "a hook on the embedding": ("llama", _hook("model.embed_tokens")),
    "a hook before the embedding": ("llama", _hook("model.embed_tokens", "pre")),
    "a norm's forward": ("llama", _forward(f"{LAYER}.input_layernorm")),
    "an MLP's forward": ("llama", _forward(f"{LAYER}.mlp")),
    "a compiled MLP": ("llama", _set(LAYER, "mlp", lambda mlp: _eager(mlp))),
    "another attention of transformers": (
        "llama",
        lambda model: model.set_attn_implementation("eager"),
    ),
}


class _Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def _scaled(module: Any) -> Any:
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.mul_(1.25)
    return twin


def _eager(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def _made(kind: str) -> Any:
    try:
        return tiny_model(kind)
    except KeyError:
        return tiny_of(kind)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "case", [case for case, (kind, _) in FOLLOWED.items() if kind not in REFUSED_HERE]
)
def test_followed(case: str, when: str, ids: Tensor) -> None:
    """One prompt, so that hooks see the columns that transformers shows them."""
    kind, change = FOLLOWED[case]
    model = _made(kind)
    plain = generate(model, 4, input_ids=ids[:1])
    if when == "before":
        change(model)
    lazy = lazyllm_ext.apply(model, "dense")
    if when == "after":
        assert_same_generation(generate(model, 4, input_ids=ids[:1]), plain)
        change(model)
    ours = generate(model, 4, input_ids=ids[:1])
    full = [layer for layer, one in enumerate(lazy.decoder.layers) if one.window == 0]
    boundaries = [{"layer": layer, "keep": 1.0} for layer in full[:-1]]
    pruned = generate(model, 4, input_ids=ids[:1], lazy_schedule={"boundaries": boundaries})
    lazy.remove()
    expected = generate(model, 4, input_ids=ids[:1])
    if model.dtype == torch.bfloat16:  # tokens may be others
        assert float((ours.logits[0] - expected.logits[0]).abs().mean()) < 0.05
        return
    assert_same_generation(ours, expected)
    if "hook" not in case:  # at a boundary queries are projected by themselves
        assert_same_generation(pruned, expected)


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
    return _set(f"model.layers.{layer}.self_attn", "sliding_window", 3)


def _compiled(name: str) -> Change:
    return _set(LAYER, name, lambda module: _eager(module))


class _Skipped(nn.Module):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x


class _OtherAttention(llama.LlamaAttention):
    pass


class _OtherNorm(llama.LlamaRMSNorm):
    pass


class _OtherMLP(llama.LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class _OtherActivation(SiLUActivation):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


CALLED = "the module is not called, so it would not run"
REFUSED: dict[str, tuple[str, Change, str]] = {
    "a hook on a layer": ("llama", _hook(LAYER), rf"layers\[1\]: expected no forward .*{CALLED}"),
    "a hook before a layer": ("llama", _hook(LAYER, "pre"), r"layers\[1\]: expected no forward"),
    "a hook on attention": ("llama", _hook(ATTENTION), r"self_attn: expected no forward hook"),
    "a hook before attention": ("llama", _hook(ATTENTION, "pre"), r"self_attn: expected no f"),
    "a hook on the base model": (
        "llama",
        _hook("model"),
        r"model\.model: expected no forward hook",
    ),
    "a hook on the rotation": ("llama", _hook("model.rotary_emb"), r"rotary_emb: expected no forw"),
    "a hook on learned positions": ("gpt2", _hook("transformer.wpe"), r"wpe: expected no forward"),
    "a hook on dropout": ("gpt2", _hook("transformer.h.1.attn.resid_dropout"), r"_dropout: expect"),
    "a hook on the first dropout": ("gpt2", _hook("transformer.drop"), r"drop: expected no forw"),
    "a hook on all": ("llama", _hook_of_all(pre=False), r"every module: expected no forward hook"),
    "a hook before all": ("llama", _hook_of_all(pre=True), r"every module: expected no forward h"),
    "a layer's forward": ("llama", _forward(LAYER), r"layers\[1\]: expected the forward of Llama"),
    "attention's forward": ("llama", _forward(ATTENTION), r"self_attn: expected the forward of"),
    "the base model's forward": ("llama", _forward("model"), r"model\.model: expected the forward"),
    "the rotation's forward": ("llama", _forward("model.rotary_emb"), r"rotary_emb: expected the"),
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
        _set("model", "config", copy.deepcopy),
        r"model\.model\.config: expected the model's own configuration, got another",
    ),
    "another class of attention": (
        "llama",
        _set(ATTENTION, "__class__", lambda _: _OtherAttention),
        r"self_attn: expected LlamaAttention, got _OtherAttention",
    ),
    "another class of a norm": (
        "llama",
        _set("model.norm", "__class__", lambda _: _OtherNorm),
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
    "not causal": ("llama", _set(ATTENTION, "is_causal", False), r"is_causal: expected True"),
    "a layer in training": ("llama", _training(LAYER), r"layers\[1\]: expected inference mode"),
    "attention in training": ("llama", _training(ATTENTION), r"self_attn: expected inference mod"),
    "dropout in training": ("gpt2", _training("transformer.drop"), r"drop: expected inference"),
    "a window of a layer": ("gemma3", _sliding("0"), r"self_attn: sliding window: expected 7, as"),
    "a window in a full layer": ("gemma3", _sliding("1"), r"self_attn: sliding window: expected 0"),
    "a window": (
        "gemma3",
        _set("config", "sliding_window", 3),
        r"sliding window: expected 3, as c",
    ),
    "norms that are off": (
        "cohere",
        _set(ATTENTION, "use_qk_norm", False),
        "use_qk_norm: expected norms that are used, got False",
    ),
    "other heads": ("llama", _set("config", "num_attention_heads", 8), r"q_proj: expected 96 outp"),
    "other heads of keys": (
        "llama",
        _set("config", "num_key_value_heads", 4),
        "k_proj: expected 48",
    ),
    "a size of heads": ("llama", _set(ATTENTION, "head_dim", 6), "q_proj: expected 24 outputs"),
    "ALiBi": ("falcon", _set("transformer", "use_alibi", True), r"alibi: .* is not supported"),
    "an accelerate hook on a layer": ("llama", _accelerated(LAYER), r"layers\[1\]: expected the f"),
    "an accelerate hook on the base": (
        "llama",
        _accelerated("model"),
        r"model\.model: expected th",
    ),
    "a compiled layer": (
        "llama",
        _set("model.layers", "1", lambda module: _eager(module)),
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
        _set("model.layers", "1", lambda _: _Skipped()),
        r"layers\[1\]: expected LlamaDecoderLayer, got _Skipped",
    ),
    "one layer twice": (
        "llama",
        lambda model: _set("model.layers", "2", lambda _: model.model.layers[1])(model),
        r"layers\[2\]\.self_attn\.layer_idx: expected another one than .*, got 1",
    ),
    "no layers that count": (
        "llama",
        _set("config", "num_hidden_layers", 0),
        r"layers: expected at least one, got 0",
    ),
    "no layers": ("llama", _layers(lambda layers: []), r"layers: expected at least one"),
    "float64": ("llama", lambda model: model.double(), r"weights, got torch\.float64"),
    "float64, learned positions": ("gpt2", lambda model: model.double(), r"got torch\.float64"),
    "meta": ("llama", lambda model: model.to("meta"), "on the meta device"),
    "a layer on meta": ("llama", lambda model: model.model.layers[1].to("meta"), "the meta device"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, ids: Tensor) -> None:
    """By apply; after it by the next call, in generate before anything is computed."""
    kind, change, message = REFUSED[case]
    model = _made(kind)
    change(model)
    with pytest.raises(lazyllm_ext.NotSupportedError, match=message):
        lazyllm_ext.apply(model, "dense")
    _PATCHES.undo()
    model = _made(kind)
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
    _hook("model.layers.1")(model)
    with pytest.warns(UserWarning, match="expected no forward hook"):
        ours = generate(model, 4, input_ids=ids)
    twin = tiny_model("llama")
    _hook("model.layers.1")(twin)
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
    compiled: Any = _eager(model)
    assert torch.equal(compiled(ids, logits_to_keep=1).logits, expected)
