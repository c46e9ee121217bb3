"""What is not supported is refused by name, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    OPTConfig,
    QuantizedCache,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.streamers import BaseStreamer

import lazyllm_ext
from lazyllm_ext.hf import SUPPORTED
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .tiny import PRUNING, generate, tiny_model

_SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 20}


@pytest.fixture
def lazy(model: nn.Module) -> Any:
    """A patched model that must not compute anything."""
    lazy = lazyllm_ext.apply(model, PRUNING)
    lazy.decoder.on_layer = _fail
    return lazy


def _fail(layer: int, rows: int) -> None:
    raise AssertionError(f"layer {layer} was computed")


class _OwnLlama(LlamaForCausalLM):
    pass


def _llama(**config: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**_SMALL, "num_attention_heads": 2, **config})).eval()


def _t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def _opt() -> nn.Module:
    config = OPTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9, ffn_dim=16
    )
    return AutoModelForCausalLM.from_config(config)


def _with_images() -> nn.Module:
    model = _llama()
    model.config = AutoConfig.for_model("gemma3")
    return model


def _own_class() -> nn.Module:
    return _OwnLlama(LlamaConfig(**_SMALL, num_attention_heads=2)).eval()


def _on_meta() -> nn.Module:
    return _llama().to("meta")


def _half_on_meta() -> nn.Module:
    model = _llama()
    model.model.layers[1].to("meta")
    return model


def _rope(**parameters: Any) -> Callable[[], nn.Module]:
    return lambda: _llama(rope_parameters={"rope_theta": 1e4, "factor": 2.0, **parameters})


def _changed(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = _llama()
        change(model)
        return model

    return make


def _bidirectional() -> nn.Module:
    model = tiny_model("gemma3")
    model.config.use_bidirectional_attention = True
    return model


def _set(path: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(path), name, value)


MODELS = {
    "unknown kind": (_opt, f"expected a model of type {', '.join(SUPPORTED)}, got 'opt'"),
    "encoder-decoder": (_t5, "got 't5' .*an encoder-decoder"),
    "images": (_with_images, "load its text as Gemma3ForCausalLM"),
    "no head": (
        lambda: LlamaModel(LlamaConfig(**_SMALL, num_attention_heads=2)),
        "expected LlamaForCausalLM, got LlamaModel",
    ),
    "classifier": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**_SMALL, num_attention_heads=2)),
        "expected LlamaForCausalLM, got LlamaForSequenceClassification",
    ),
    "subclass": (_own_class, "expected LlamaForCausalLM, got _OwnLlama"),
    "training": (lambda: _llama().train(), r"got training mode; call model\.eval\(\)"),
    "meta": (_on_meta, "on the meta device"),
    "half on meta": (_half_on_meta, "on the meta device"),
    "float64": (lambda: _llama().double(), "weights, got torch.float64"),
    "compiled": (lambda: torch.compile(_llama()), "one that torch.compile returned"),
    "compiled in place": (_changed(lambda model: model.compile()), r"after model\.compile\(\)"),
    "dynamic rope": (_rope(rope_type="dynamic"), "rope_type: .* got 'dynamic'"),
    "longrope": (
        _rope(
            rope_type="longrope",
            short_factor=[1.0] * 4,
            long_factor=[2.0] * 4,
            original_max_position_embeddings=64,
        ),
        "rope_type: .* got 'longrope'",
    ),
    "bidirectional": (_bidirectional, "use_bidirectional_attention"),
    "not causal": (_changed(lambda model: setattr(model.config, "is_causal", False)), "is_causal"),
    "checkpointing": (
        _changed(lambda model: model.gradient_checkpointing_enable()),
        "expected no gradient checkpointing",
    ),
    "another norm": (
        _changed(_set("model.layers.1", "input_layernorm", nn.LayerNorm(16))),
        r"layers\[1\]\.input_layernorm: expected LlamaRMSNorm, got LayerNorm",
    ),
    "another attention": (
        _changed(_set("model.layers.1", "self_attn", nn.Identity())),
        r"layers\[1\]\.self_attn: expected LlamaAttention, got Identity",
    ),
    "head norms": (
        _changed(_set("model.layers.0.self_attn", "q_norm", nn.Identity())),
        r"layers\[0\]\.self_attn: expected the modules .* got .*q_norm",
    ),
    "replaced forward": (_changed(lambda m: setattr(m, "forward", m.forward)), "was replaced"),
    "hook": (
        _changed(lambda m: m.model.layers[0].register_forward_hook(_fail)),
        r"layers\[0\]: expected no forward hook, got _fail",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str) -> None:
    make, message = MODELS[case]
    model = make()
    before = dict(model.__dict__)
    with pytest.raises(ValueError, match=message):
        lazyllm_ext.apply(model, "dense")
    assert model.__dict__ == before


@pytest.mark.parametrize("other", ["disk", "meta"])
def test_layers_on_two_devices(tmp_path: Path, other: str) -> None:
    """As from_pretrained spreads a model; no module may be moved or called."""
    _llama().save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": other,
              "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    for module in model.modules():
        module.forward = _fail
    for use in (lazyllm_ext.apply, lazyllm_ext.LazyDecoder.from_model):
        with pytest.raises(ValueError, match=f"on one device, got a device_map over cpu, {other}"):
            use(model, "dense")


def test_a_device_map_of_one_device(tmp_path: Path, ids: Tensor) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    lazyllm_ext.apply(model, PRUNING)
    assert generate(model, 3, input_ids=ids).sequences.size(1) == 16


@pytest.mark.parametrize("thing", ["a model", None, nn.Linear(2, 2)])
def test_no_model(thing: Any) -> None:
    with pytest.raises(TypeError, match="expected a transformers model, got"):
        lazyllm_ext.apply(thing, "dense")


def test_hooks_that_transformers_leaves_behind(model: nn.Module, ids: Tensor) -> None:
    with torch.no_grad():
        model(ids, output_hidden_states=True)
    assert model.model.layers[0]._forward_hooks
    lazyllm_ext.apply(model, "dense")


GENERATE = {
    "contrastive": (
        {"penalty_alpha": 0.5, "top_k": 4, "trust_remote_code": True},
        "contrastive_search is not supported",
    ),
    "static": ({"cache_implementation": "static"}, "cache_implementation='static' is not"),
    "offloaded": ({"cache_implementation": "offloaded"}, "'offloaded' is not supported"),
    "quantized": ({"cache_implementation": "quantized"}, "'quantized' is not supported"),
    "paged": ({"cache_implementation": "paged"}, "'paged': not supported"),
    "no cache": ({"use_cache": False}, "use_cache=False is not supported"),
    "no cache, as a number": ({"use_cache": 0}, "use_cache=0 is not supported"),
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale=2.0 is not supported"),
    "healing": ({"token_healing": True}, "token_healing=True is not supported"),
    "attentions": ({"output_attentions": True}, "output_attentions: not supported"),
    "hidden": ({"output_hidden_states": True}, "output_hidden_states: not supported"),
    "labels": ({"labels": torch.zeros(3, 13)}, "labels: not supported"),
    "own loop": ({"custom_generate": lambda *args, **kwargs: None}, "custom_generate: not supp"),
    "negative prompt": ({"negative_prompt_ids": torch.zeros(3, 2)}, "negative_prompt_ids: not"),
}


@pytest.mark.parametrize("case", GENERATE)
def test_generation_modes(lazy: Any, ids: Tensor, case: str) -> None:
    arguments, message = GENERATE[case]
    with pytest.raises(ValueError, match=message):
        lazy.model.generate(ids, max_new_tokens=2, streamer=_Untouched(), **arguments)


class _Untouched(BaseStreamer):
    def put(self, value: Tensor) -> None:
        raise AssertionError("the refusal came after the streamer was told")

    end = put


def test_an_assistant_with_lazyllm(lazy: Any, ids: Tensor) -> None:
    for assistant in (lazy.model, lazyllm_ext.apply(tiny_model("qwen3"), "dense").model):
        with pytest.raises(ValueError, match="assistant_model: expected a model of its own"):
            lazy.model.generate(ids[:1], max_new_tokens=2, assistant_model=assistant)
    helped = tiny_model("llama")
    with pytest.raises(ValueError, match="is not supported"):
        helped.generate(ids[:1], max_new_tokens=4, assistant_model=lazy.model)


def test_modes_in_the_models_generation_config(lazy: Any, ids: Tensor) -> None:
    lazy.model.generation_config.cache_implementation = "static"
    with pytest.raises(ValueError, match="cache_implementation='static' is not"):
        lazy.model.generate(ids, max_new_tokens=2)


FORWARD = {
    "labels": ({"labels": torch.zeros(3, 13)}, "labels: not supported"),
    "attentions": ({"output_attentions": True}, "output_attentions: not supported"),
    "hidden": ({"output_hidden_states": True}, "output_hidden_states: not supported"),
    "unknown": ({"cu_seq_lens_q": torch.zeros(2)}, "cu_seq_lens_q: not supported; expected"),
    "images": ({"token_type_ids": torch.ones(3, 13)}, "token_type_ids: expected text only"),
    "both": ({"inputs_embeds": torch.zeros(3, 13, 48)}, "got both"),
    "neither": ({"input_ids": None}, "got none"),
    "flat": ({"input_ids": torch.zeros(13, dtype=torch.long)}, r"expected \[batch, columns\]"),
    "floats": ({"input_ids": torch.zeros(3, 13)}, "of int64, got .* of torch.float32"),
    "text": ({"input_ids": "a prompt"}, r"input_ids: .* got str, no tensor"),
    "lists": ({"input_ids": [[1, 2]]}, r"input_ids: .* got list, no tensor"),
    "positions of lists": ({"position_ids": [[0] * 13] * 3}, "position_ids: .* got list"),
    "positions in between": (
        {"position_ids": torch.arange(13)[None] / 2},
        "position_ids: expected a tensor of int64, got torch.float32",
    ),
    "empty": ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token, got shape"),
    "no batch": ({"input_ids": torch.zeros(0, 5, dtype=torch.long)}, "at least one token"),
    "too long": (
        {"input_ids": torch.zeros(1, 129, dtype=torch.long)},
        r"expected at most 128 tokens \(config.max_position_embeddings\), got 129",
    ),
    "elsewhere": (
        {"input_ids": torch.zeros(1, 4, dtype=torch.long, device="meta")},
        "input_ids: expected a tensor on cpu, got one on meta",
    ),
    "embeds dtype": (
        {"input_ids": None, "inputs_embeds": torch.zeros(1, 4, 48, dtype=torch.float16)},
        "inputs_embeds: expected .* of torch.float32, got .* of torch.float16",
    ),
    "embeds width": (
        {"input_ids": None, "inputs_embeds": torch.zeros(1, 4, 47)},
        r"inputs_embeds: expected \[batch, columns, 48\] .*, got \[1, 4, 47\]",
    ),
    "gradient": (
        {"input_ids": None, "inputs_embeds": torch.zeros(1, 4, 48, requires_grad=True)},
        "expected no gradient",
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_forward_arguments(lazy: Any, ids: Tensor, case: str) -> None:
    arguments, message = FORWARD[case]
    with pytest.raises(ValueError, match=message):
        lazy.model(**{"input_ids": ids, "logits_to_keep": 1, **arguments})


def test_arguments_that_ask_for_nothing(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    model(
        ids,
        logits_to_keep=1,
        output_attentions=False,
        output_hidden_states=None,
        token_type_ids=torch.zeros_like(ids),
        cu_seq_lens_q=None,
    )


def test_modes_entered_later(lazy: Any, ids: Tensor) -> None:
    lazy.model.train()
    for use in (lazy.model, lazy.model.generate):
        with pytest.raises(ValueError, match="got training mode"):
            use(ids)
    lazy.model.eval()
    with pytest.raises(ValueError, match="autocast"), torch.autocast("cpu", torch.bfloat16):
        lazy.model(ids, logits_to_keep=1)


@pytest.mark.parametrize("kind", ["static", "quantized", "tuple", "filled", "offloaded"])
def test_other_caches(lazy: Any, ids: Tensor, kind: str) -> None:
    config = lazy.model.config
    past: Any = DynamicCache(offloading=kind == "offloaded", config=config)
    message = "expected a LazyCache or an empty DynamicCache, got"
    if kind == "static":
        past = StaticCache(config=config, max_cache_len=64)
    elif kind == "quantized":
        past = DynamicCache()
        past.__class__ = QuantizedCache  # its back ends are not installed here
    elif kind == "tuple":
        past = ((ids, ids),)
    elif kind == "filled":
        with torch.no_grad():
            tiny_model("llama")(ids, **{CACHE_NAME: past})
        message = "a DynamicCache that holds 13 tokens computed without LazyLLM"
    for use in (lazy.model, lazy.model.generate):
        with pytest.raises(ValueError, match=message):
            use(ids, past_key_values=past)


def test_caches_of_others(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    past = model(ids, logits_to_keep=1).past_key_values
    other = tiny_model("llama")
    lazyllm_ext.apply(other, PRUNING)
    with pytest.raises(ValueError, match=r"expected a cache of this lazyllm_ext\.apply"):
        other(ids[:, :1], past_key_values=past)
    with pytest.raises(ValueError, match=f"expected 3 sequences as in {CACHE_NAME}, got 2"):
        model(ids[:2, :1], past_key_values=past)


def test_a_cache_by_both_names(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    past = model(ids, logits_to_keep=1).past_key_values
    for use in (model, model.generate):
        with pytest.raises(ValueError, match="cache: expected one of cache and past_key_values"):
            use(ids, cache=past, past_key_values=past)


def test_a_turn_that_does_not_go_on_from_its_cache(model: nn.Module, ids: Tensor) -> None:
    lazyllm_ext.apply(model, PRUNING)
    past = generate(model, input_ids=ids).past_key_values  # 13 + 7 columns
    with pytest.raises(ValueError, match="the whole conversation, longer than the 20 columns"):
        model.generate(ids, past_key_values=past, max_new_tokens=2)
    # New tokens alone, with the mask of everything.
    mask = torch.ones(3, 24, dtype=torch.long)
    more = model.generate(
        ids[:, :4], past_key_values=past, attention_mask=mask, max_new_tokens=2, min_new_tokens=2
    )
    assert more.shape == (3, 6)
    assert past.get_seq_length() == 25
    for width in (11, 30):  # it would have other positions
        mask = torch.ones(3, width, dtype=torch.long)
        with pytest.raises(ValueError) as error:
            model.generate(ids[:, :4], past_key_values=past, attention_mask=mask, max_new_tokens=2)
        assert str(error.value) == (
            f"attention_mask: expected 4 columns, as inputs has, or 29, with those that "
            f"{CACHE_NAME} holds, got shape [3, {width}]"
        )
