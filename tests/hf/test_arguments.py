"""Arguments of `generate` and `forward`: as transformers has them, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerFast

import lazyllm_ext
from lazyllm_ext import NotSupportedError

from .every_model import OLD, tiny_of
from .tiny import PRUNING, generate, keep_all, left_padded, tiny_model

IDS = torch.randint(3, 83, (3, 13), generator=torch.Generator().manual_seed(7))
ONES = torch.ones(3, 13, dtype=torch.long)
DOCUMENTS = torch.tensor([[1] * 5 + [2] * 8] * 3)  # their numbers, as packed batches have them
PACKED = torch.tensor([[*range(4), *range(9)]] * 3)  # positions that restart
JUMPING = torch.tensor([[*range(4), *range(6, 15)]] * 3)
REPEATED = torch.tensor([[0, 1, 2, 2, 3, 3, *range(4, 11)]] * 3)
HOLES = ONES.clone()
HOLES[1, 4:6] = 0
LEFT = left_padded([IDS[0], IDS[1, :6]])
RIGHT = {"input_ids": IDS[:2], "attention_mask": torch.tensor([[1] * 13, [1] * 9 + [0] * 4])}


def _byte_tokenizer() -> Any:
    """A letter is a token; transformers' stop strings need one that decodes by itself."""
    table = {text: number for number, text in enumerate(["<pad>", "<s>", "</s>"])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet())[:80]:
        table[letter] = len(table)
    of_bytes = tokenizers.Tokenizer(models.BPE(table, []))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=of_bytes, pad_token="<pad>")


def _embeds(model: Any, dtype: torch.dtype) -> Tensor:
    embedded: Tensor = model.get_input_embeddings()(IDS).to(dtype)
    return embedded


Arguments = Callable[[Any], dict[str, Any]]  # of a model


def _given(**arguments: Any) -> Arguments:
    return lambda model: {"input_ids": IDS, **arguments}


def _stop_strings(**others: Any) -> Arguments:
    def make(model: Any) -> dict[str, Any]:
        tokenizer = _byte_tokenizer()
        free = generate(model, 12, input_ids=IDS[:1], min_new_tokens=None).sequences[0, 13:]
        stop = tokenizer.decode(free[4:5])
        arguments = {"stop_strings": [stop], "min_new_tokens": None, "tokenizer": tokenizer}
        return {"input_ids": IDS[:1], **arguments, **others}

    return make


# The same sequences as transformers, under a schedule that scores and keeps every token.
GENERATES: dict[str, tuple[str, Arguments]] = {
    "stop strings": ("llama", _stop_strings()),
    "stop strings of beams": ("llama", _stop_strings(num_beams=2)),
    "a tokenizer": ("llama", _given(tokenizer=1, assistant_tokenizer=2)),
    "dynamic": ("llama", _given(cache_implementation="dynamic")),
    "dynamic by a configuration": (
        "llama",
        _given(
            generation_config=GenerationConfig(cache_implementation="dynamic", pad_token_id=0),
        ),
    ),
    "all logits": ("llama", _given(logits_to_keep=0)),
    "five logits": ("llama", _given(logits_to_keep=5)),
    "all logits of a padded batch": ("llama", lambda model: {**LEFT, "logits_to_keep": 0}),
    "bool mask": ("llama", _given(attention_mask=ONES.bool())),
    "one mask for all": ("llama", _given(attention_mask=ONES[:1])),
    "holes": ("llama", _given(attention_mask=HOLES)),
    "packed": ("mistral-sliding", _given(position_ids=PACKED)),
    "repeated": ("gpt2", _given(position_ids=REPEATED)),
    "causal": ("llama", _given(is_causal=True)),
}

# transformers computes these; LazyLLM refuses with these words.
GENERATE_REFUSED: dict[str, tuple[str, Arguments, str]] = {
    "twos": ("llama", _given(attention_mask=ONES * 2), "0 and 1 only, got 2"),
    "minus ones": ("llama", _given(attention_mask=-ONES), "0 and 1 only, got -1"),
    "documents": ("llama", _given(attention_mask=DOCUMENTS), "0 and 1 only, got 2"),
    "more columns": ("llama", _given(attention_mask=torch.ones(3, 16)), "expected 13 columns"),
    "holes in a window": (
        "mistral-sliding",
        _given(attention_mask=HOLES),
        "no padding between tokens, since transformers counts it into sliding windows",
    ),
    "bidirectional": ("llama", _given(is_causal=False), "is_causal: expected True, got False"),
    "half embeddings": (
        "llama",
        lambda model: {"inputs_embeds": _embeds(model, torch.bfloat16)},
        "inputs_embeds: expected .* of torch.float32, got .* of torch.bfloat16",
    ),
    "types": ("gpt2", _given(token_type_ids=torch.zeros_like(IDS)), "token_type_ids: expected non"),
    "columns of logits": ("llama", _given(logits_to_keep=slice(0, None)), "a number of last toke"),
}

# Logits of every token there is, with nothing dropped.
FORWARDS: dict[str, tuple[str, Arguments]] = {
    "packed with a cache": ("llama", _given(position_ids=PACKED)),
    "packed with a cache of one's own": (
        "llama",
        lambda model: {
            "input_ids": IDS,
            "position_ids": PACKED,
            "use_cache": False,
            "past_key_values": DynamicCache(),
        },
    ),
    "packed with a mask": (
        "llama",
        _given(position_ids=PACKED, attention_mask=ONES, use_cache=False),
    ),
    "repeated in windows": ("mistral-sliding", _given(position_ids=REPEATED)),
    "one after the other": (
        "llama",
        _given(position_ids=torch.arange(5, 18)[None], use_cache=False),
    ),
    "holes with positions": ("llama", _given(attention_mask=HOLES, position_ids=JUMPING)),
    "padding": ("mistral-sliding", lambda model: LEFT),
    "padding on the right": ("gpt2", lambda model: RIGHT),
    "padding with positions": (
        "gpt2",
        lambda model: {**LEFT, "position_ids": (LEFT["attention_mask"].cumsum(1) - 1).relu()},
    ),
    "one mask for all": ("llama", _given(attention_mask=ONES[:1])),
    "types": ("llama", _given(token_type_ids=torch.zeros_like(IDS))),
    "a tokenizer": ("llama", _given(tokenizer=1)),
}

_PACKED = "position_ids: expected each one more than the one before it"
FORWARD_REFUSED: dict[str, tuple[str, Arguments, str]] = {
    "packed": ("llama", _given(position_ids=PACKED, use_cache=False), _PACKED),
    "jumping": ("mistral-sliding", _given(position_ids=JUMPING, use_cache=False), _PACKED),
    "repeated": ("gpt2", _given(position_ids=REPEATED[:1], use_cache=False), _PACKED),
    "holes": ("llama", _given(attention_mask=HOLES), "padding stands between tokens"),
    "holes in a window": (
        "mistral-sliding",
        _given(attention_mask=HOLES, position_ids=JUMPING),
        "no padding between tokens",
    ),
    "learned positions": ("gpt2", lambda model: LEFT, "where padding stands before tokens"),
    "fewer columns": ("llama", _given(attention_mask=ONES[:, :10]), r"expected shape \[3, 13\]"),
    "more columns": ("llama", _given(attention_mask=torch.ones(3, 16)), r"expected shape \[3, 13"),
    "four dimensions": (
        "llama",
        _given(attention_mask=torch.ones(3, 1, 13, 13, dtype=torch.bool).tril()),
        "attention_mask: expected 2 dimensions",
    ),
    "all but some logits": ("llama", _given(logits_to_keep=-1), "a number of last tokens, got -1"),
    "columns": ("llama", _given(logits_to_keep=torch.tensor([0, 3])), "last tokens, got Tensor"),
    "half embeddings": (
        "llama",
        lambda model: {"inputs_embeds": _embeds(model, torch.float16)},
        "of torch.float32, got .* of torch.float16",
    ),
    "types": ("gpt2", _given(token_type_ids=torch.zeros_like(IDS)), "token_type_ids: expected non"),
    "types of a relative": (
        "gpt_bigcode",
        _given(token_type_ids=torch.zeros_like(IDS)),
        "token_type_ids: expected none, since this model adds an embedding of each",
    ),
    "bidirectional": ("llama", _given(is_causal=False), "is_causal: expected True, got False"),
    "a column's place": ("llama", _given(cache_position=torch.arange(13)), "cache_position: not"),
    "something false": ("llama", _given(head_mask=False), "head_mask: not supported"),
}

# Wrong for transformers, too.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "return_dict": ({"input_ids": IDS, "return_dict": False}, "return_dict: expected no such"),
    "no tokens": ({"input_ids": IDS[:, :0]}, r"at least one token, got shape \[3, 0\]"),
    "no sequence": ({"inputs": IDS[:0]}, r"inputs: expected at least one token"),
    "no embeddings": ({"inputs_embeds": torch.zeros(1, 0, 48)}, "at least one token"),
    "flat": ({"input_ids": IDS[0]}, r"input_ids: expected \[batch, columns\] of int64, got \[13\]"),
    "lists": ({"inputs": IDS.tolist()}, "inputs: .* got list, no tensor"),
    "text": ({"inputs": "a prompt"}, "inputs: .* got str, no tensor"),
    "floats": ({"input_ids": IDS.float()}, "of int64, got .* of torch.float32"),
    "another batch's mask": ({"input_ids": IDS, "attention_mask": ONES[:2]}, "expected 3 rows"),
    "one padded mask": ({"input_ids": IDS, "attention_mask": HOLES[1:2]}, r"expected shape \[3"),
}


def _model(name: str) -> Any:
    return tiny_of(name) if name.startswith("gpt") else tiny_model(name)


def _generated(model: Any, arguments: dict[str, Any]) -> Tensor:
    sequences: Tensor = generate(model, 6, **arguments).sequences
    return sequences


def _logits(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Of the columns that hold a token."""
    with torch.no_grad():
        logits: Tensor = model(**arguments).logits
    mask = arguments.get("attention_mask")
    return logits if mask is None or mask.shape != logits.shape[:2] else logits[mask != 0]


@pytest.mark.parametrize("case", GENERATES)
def test_generate_as_transformers(case: str) -> None:
    name, make = GENERATES[case]
    model = _model(name)
    arguments = make(model)
    expected = _generated(model, arguments)
    lazyllm_ext.apply(model, keep_all(model))
    assert torch.equal(_generated(model, arguments), expected)


def test_whether_there_is_a_cache_left_out() -> None:
    """None is no answer; transformers then reads the whole prompt again in each step."""
    model = _model("llama")
    expected = _generated(model, {"input_ids": IDS})
    lazyllm_ext.apply(model, keep_all(model))
    assert torch.equal(_generated(model, {"input_ids": IDS, "use_cache": None}), expected)


@pytest.mark.parametrize("case", GENERATE_REFUSED)
def test_generate_refuses(case: str) -> None:
    name, make, words = GENERATE_REFUSED[case]
    model = _model(name)
    arguments = make(model)
    expected = _generated(model, arguments)
    with lazyllm_ext.apply(model, "dense"), pytest.raises(NotSupportedError, match=words):
        _generated(model, arguments)
    lazyllm_ext.apply(model, "dense", on_error="dense")
    with pytest.warns(UserWarning, match=words):
        assert torch.equal(_generated(model, arguments), expected)


@pytest.mark.parametrize("case", FORWARDS)
def test_forward_as_transformers(case: str) -> None:
    name, make = FORWARDS[case]
    model = _model(name)
    expected = _logits(model, make(model))
    lazyllm_ext.apply(model, "dense")
    torch.testing.assert_close(_logits(model, make(model)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", FORWARD_REFUSED)
def test_forward_refuses(case: str) -> None:
    name, make, words = FORWARD_REFUSED[case]
    model = _model(name)
    arguments = make(model)
    expected = _logits(model, arguments)
    with lazyllm_ext.apply(model, "dense"), pytest.raises(NotSupportedError, match=words):
        _logits(model, arguments)
    lazyllm_ext.apply(model, "dense", on_error="dense")
    with pytest.warns(UserWarning, match=words):
        assert torch.equal(_logits(model, arguments), expected)


def test_packed_without_a_cache_by_the_configuration(model: nn.Module) -> None:
    lazyllm_ext.apply(model, "dense")
    model.config.use_cache = False
    with pytest.raises(NotSupportedError, match=_PACKED):
        model(IDS, position_ids=PACKED)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_for_both(case: str, model: nn.Module) -> None:
    arguments, words = WRONG[case]
    with pytest.raises((ValueError, RuntimeError, TypeError, AttributeError, IndexError)):
        model.generate(**arguments, max_new_tokens=2)
    lazyllm_ext.apply(model, "dense")
    with pytest.raises(ValueError, match=words) as caught:
        model.generate(**arguments, max_new_tokens=2)
    assert not isinstance(caught.value, NotSupportedError)


def test_labels_of_any_kind(model: nn.Module) -> None:
    lazyllm_ext.apply(model, "dense")
    for labels in (False, 0, IDS):
        with pytest.raises(NotSupportedError, match="labels: not supported"):
            model(IDS, labels=labels)


@pytest.mark.parametrize("position", [-1, -3])
def test_a_learned_position_below_zero(position: int) -> None:
    model = tiny_of("gpt2")
    lazyllm_ext.apply(model, "dense")
    with pytest.raises(ValueError, match=f"expected at least 0, .*, got {position}"):
        model(IDS[:, :1], position_ids=torch.tensor([[position]]))


# The arguments of families stand in different orders.
BY_PLACE: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "llama": lambda model: (IDS, ONES, PACKED, None, None, None, True, 4),
    "gpt2": lambda model: (IDS, None, HOLES, None, JUMPING),
    "gpt_neox": lambda model: (None, ONES, None, _embeds(model, torch.float32)),
    "granitemoe": lambda model: (IDS, ONES, None, None, None, None, None, 3),
    "falcon": lambda model: (IDS, None, ONES, JUMPING, None, None, True, None, None, True, 3),
}


@pytest.mark.parametrize("kind", [kind for kind in BY_PLACE if not (OLD and kind == "gpt_neox")])
def test_by_place(kind: str) -> None:
    model = tiny_of(kind)
    given = BY_PLACE[kind](model)
    with torch.no_grad():
        expected = model(*given).logits
    lazyllm_ext.apply(model, "dense")
    got = model(*given).logits
    shown = (HOLES if kind == "gpt2" else ONES)[:, : got.size(1)] == 1
    torch.testing.assert_close(got[shown], expected[shown], atol=1e-4, rtol=0)


@pytest.mark.parametrize("arguments", [{}, {"logits_to_keep": 0}])
def test_right_padding_goes_on_as_alone_with_a_warning(
    model: nn.Module, arguments: dict[str, Any]
) -> None:
    lazyllm_ext.apply(model, keep_all(model))
    with pytest.warns(UserWarning, match="padding on the right"):
        both = generate(model, **RIGHT, **arguments)
    alone = generate(model, input_ids=IDS[1:2, :9])
    assert torch.equal(both.sequences[1, 13:], alone.sequences[0, 9:])
    with pytest.warns(UserWarning, match="padding on the right"):
        last = model(**RIGHT, logits_to_keep=1).logits
    torch.testing.assert_close(last[1, 0], alone.logits[0][0], atol=1e-4, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, **LEFT)


@pytest.mark.parametrize("kept", [1, 5, 0])
def test_counts_with_more_logits(model: nn.Module, kept: int) -> None:
    lazy = lazyllm_ext.apply(model, PRUNING)
    generate(model, input_ids=IDS[:1], logits_to_keep=kept)
    report = lazy.report()
    assert (report.prompt_tokens, report.generated_tokens, report.tokens_total) == (13, 8, 20)


def test_continuous_batching_is_refused_at_once(model: nn.Module) -> None:
    lazyllm_ext.apply(model, "dense")
    with pytest.raises(NotSupportedError, match="generate_batch: continuous batching"):
        model.generate_batch(IDS.tolist())
    with (
        pytest.raises(NotSupportedError, match="generate_batch: continuous batching"),
        model.continuous_batching_context_manager(),
    ):
        pass
