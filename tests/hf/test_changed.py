"""What changes of a model, before `apply` or after it, is followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext

from .changes import (
    ATTENTION,
    LAYER,
    Change,
    Cubed,
    OtherActivation,
    OtherMLP,
    another_head,
    delete_in_place,
    eager,
    edit_in_place,
    edit_layers,
    forwarded,
    hooked,
    insert_layer,
    load_state,
    made,
    parameter_of,
    scaled,
    set_to,
    swap_in_place,
    times,
)
from .every_model import REFUSED_HERE
from .tiny import assert_same_generation, generate

FOLLOWED: dict[str, tuple[str, Change]] = {
    "scaling": ("llama", set_to(ATTENTION, "scaling", times(1.7))),
    "epsilon": ("llama", set_to(f"{LAYER}.input_layernorm", "variance_epsilon", 0.3)),
    "epsilon of the final norm": ("llama", set_to("model.norm", "variance_epsilon", 0.3)),
    "epsilon of head norms": ("qwen3", set_to(f"{ATTENTION}.q_norm", "variance_epsilon", 0.3)),
    "epsilon of a layer norm": ("phi", set_to(f"{LAYER}.input_layernorm", "eps", 0.3)),
    "rotation's scale": ("llama", set_to("model.rotary_emb", "attention_scaling", 1.5)),
    "frequencies": ("llama", set_to("model.rotary_emb", "inv_freq", times(0.5))),
    "soft cap": ("gemma3", set_to("config", "final_logit_softcapping", 2.0)),
    "no soft cap": ("gemma3", set_to("config", "final_logit_softcapping", None)),
    "soft cap of attention": ("gemma2", set_to(ATTENTION, "attn_logit_softcapping", 0.7)),
    "scale of embeddings": ("granite", set_to("model", "embedding_multiplier", 5.0)),
    "scale of residuals": ("granite", set_to(LAYER, "residual_multiplier", 1.1)),
    "scale of logits": ("granite", set_to("config", "logits_scaling", 3.0)),
    "scale of logits, an attribute": ("cohere", set_to("", "logit_scale", 0.5)),
    "a configuration that nobody reads": ("granite", set_to("config", "embedding_multiplier", 9.0)),
    "parallel": ("gpt_neox", set_to("gpt_neox.layers.1", "use_parallel_residual", False)),
    "fewer layers": ("llama", set_to("config", "num_hidden_layers", 3)),
    "layers swapped": ("llama", swap_in_place),
    "layers in another order": ("llama", edit_layers(lambda layers: layers[::-1])),
    "a layer deleted": ("llama", delete_in_place),
    "a layer inserted": ("llama", insert_layer),
    "a layer replaced": ("llama", set_to("model.layers", "2", lambda layer: scaled(layer))),
    "a projection replaced": ("llama", set_to(ATTENTION, "q_proj", lambda module: scaled(module))),
    "an MLP replaced": ("llama", set_to(LAYER, "mlp", lambda module: scaled(module))),
    "an activation": ("llama", set_to(f"{LAYER}.mlp", "act_fn", lambda _: nn.Tanh())),
    "an activation of one's own": ("llama", set_to(f"{LAYER}.mlp", "act_fn", lambda _: Cubed())),
    "a norm replaced": ("llama", set_to("model", "norm", lambda module: scaled(module))),
    "an embedding replaced": ("llama", set_to("model", "embed_tokens", lambda one: scaled(one))),
    "a head replaced": ("llama", another_head),
    "a norm's weight": ("llama", parameter_of(f"{LAYER}.input_layernorm")),
    "a head norm's weight": ("qwen3", parameter_of(f"{ATTENTION}.k_norm")),
    "a projection's weight": ("llama", parameter_of(f"{ATTENTION}.o_proj")),
    "an embedding's weight": ("llama", parameter_of("model.embed_tokens")),
    "weights in place": ("llama", edit_in_place),
    "a state loaded": ("llama", load_state(assign=False)),
    "a state assigned": ("llama", load_state(assign=True)),
    "bfloat16": ("llama", lambda model: model.to(torch.bfloat16)),
    "bfloat16, learned positions": ("gpt2", lambda model: model.to(torch.bfloat16)),
    "more tokens": ("llama", lambda model: model.resize_token_embeddings(100)),
    "more tokens, tied": ("qwen2", lambda model: model.resize_token_embeddings(100)),
    "a hook on a projection": ("llama", hooked(f"{ATTENTION}.q_proj")),
    "a hook before a projection": ("llama", hooked(f"{LAYER}.mlp.up_proj", "pre")),
    "a hook on a fused projection": ("phi3", hooked(f"{ATTENTION}.qkv_proj")),
    "a hook on a norm": ("llama", hooked(f"{LAYER}.input_layernorm")),
    "a hook before a norm": ("llama", hooked(f"{LAYER}.post_attention_layernorm", "pre")),
    "a hook on a layer norm": ("phi", hooked(f"{LAYER}.input_layernorm")),
    "a hook on a head norm": ("qwen3", hooked(f"{ATTENTION}.q_norm")),
    "a hook on an MLP": ("llama", hooked(f"{LAYER}.mlp")),
    "a hook on experts": ("mixtral", hooked(f"{LAYER}.mlp")),
    "another class of an MLP": ("llama", set_to(f"{LAYER}.mlp", "__class__", lambda _: OtherMLP)),
    "another class of an activation": (
        "llama",
        set_to(f"{LAYER}.mlp.act_fn", "__class__", lambda _: OtherActivation),
    ),
    "a hook on an activation": ("llama", hooked(f"{LAYER}.mlp.act_fn")),
    "a hook on the final norm": ("llama", hooked("model.norm")),
    "a hook on the head": ("llama", hooked("lm_head")),
    "a hook on the embedding": ("llama", hooked("model.embed_tokens")),
    "a hook before the embedding": ("llama", hooked("model.embed_tokens", "pre")),
    "a norm's forward": ("llama", forwarded(f"{LAYER}.input_layernorm")),
    "an MLP's forward": ("llama", forwarded(f"{LAYER}.mlp")),
    "a compiled MLP": ("llama", set_to(LAYER, "mlp", lambda mlp: eager(mlp))),
    "another attention of transformers": (
        "llama",
        lambda model: model.set_attn_implementation("eager"),
    ),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "case", [case for case, (kind, _) in FOLLOWED.items() if kind not in REFUSED_HERE]
)
def test_followed(case: str, when: str, ids: Tensor) -> None:
    """One prompt, so that hooks see the columns that transformers shows them."""
    kind, change = FOLLOWED[case]
    model = made(kind)
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
