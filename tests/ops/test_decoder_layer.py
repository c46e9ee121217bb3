"""decoder_layer_, which is made of the other operators, against them and its reference."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lazyllm_ext import _C, ops
from lazyllm_ext.ops import reference

from . import comparison
from .builders import FLOATS

HIDDEN, HEADS, KV_HEADS, DIM, INNER, SLOTS = 64, 6, 2, 16, 96, 60
NAN = float("nan")


def arguments(
    dtype: torch.dtype,
    rows: tuple[int, ...] = (1,),
    stored: int = 20,
    optional: bool = True,
    **others: Any,
) -> dict[str, Any]:
    """A layer's parameters, and `stored` earlier tokens and some new `rows` of each sequence."""
    generator = torch.Generator().manual_seed(7)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def weight(out: int, into: int) -> Tensor:
        return floats(out, into) * into**-0.5

    total, width, kv_width = sum(rows), HEADS * DIM, KV_HEADS * DIM
    keys = [stored + count for count in rows]
    places = torch.randperm(max(SLOTS, sum(keys)), generator=generator)[: sum(keys)]
    index = torch.cat([torch.arange(count) for count in keys])
    new = torch.cat([torch.arange(n) >= stored for n in keys])
    angle = 3 * torch.randn((total, DIM // 2), generator=generator)
    there = [
        *(floats(size) for size in (width, kv_width, kv_width, HIDDEN)),
        *(floats(size) for size in (DIM, DIM, HIDDEN, HIDDEN)),
    ]
    made = {
        "hidden": floats(total, HIDDEN),
        "key_store": floats(max(SLOTS, sum(keys)), KV_HEADS, DIM),
        "value_store": floats(max(SLOTS, sum(keys)), KV_HEADS, DIM),
        "slots": places[new],
        "query_index": index[new],
        "query_offsets": torch.tensor([0, *rows]).cumsum(0),
        "key_slots": places,
        "key_index": index,
        "key_offsets": torch.tensor([0, *keys]).cumsum(0),
        "cos": angle.cos().to(dtype),
        "sin": angle.sin().to(dtype),
        "weights": [
            1 + floats(HIDDEN) / 8,
            weight(width, HIDDEN), weight(kv_width, HIDDEN), weight(kv_width, HIDDEN),
            weight(HIDDEN, width),
            1 + floats(HIDDEN) / 8,
            weight(INNER, HIDDEN), weight(INNER, HIDDEN), weight(HIDDEN, INNER),
        ],
        "optional": there if optional else [None] * 8,
        "eps": 1e-5,
        "offset": 0.0,
        "scale": DIM**-0.5,
        "window": 0,
        "softcap": 0.0,
        "interleaved": False,
        "activation": "silu",
    }  # fmt: skip
    return {**made, **others}


def run(of: dict[str, Any], function: Any = torch.ops.lazyllm.decoder_layer_) -> list[Tensor]:
    own = {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in of.items()
    }
    output = function(*own.values())
    return [output, own["key_store"], own["value_store"]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optional": False},
        {"rows": (1, 1, 1), "optional": False},
        {"rows": (3, 0, 40), "stored": 70},
        {"activation": "gelu_tanh", "offset": 1.0},
        {"window": 5, "softcap": 4.0},
        {"interleaved": True},
        {"rows": (0,)},
    ],
    ids=str,
)
def test_equals_reference(options: dict[str, Any], dtype: torch.dtype) -> None:
    """At most twice the error of the reference at the same dtype, in the stores, too."""
    of = arguments(dtype, **options)
    exact = run(comparison.in_float64(of), reference.decoder_layer_)
    plain = run(of, reference.decoder_layer_)
    for mine, theirs, true in zip(run(of), plain, exact, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == true.shape
        assert mine.is_contiguous()
        if mine.numel() > 0:
            least = torch.finfo(dtype).eps * float(true.abs().max())
            allowed = 2 * float((theirs.double() - true).abs().max()) + least
            assert float((mine.double() - true).abs().max()) <= allowed


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sequence_alone_gives_the_same(dtype: torch.dtype) -> None:
    # Tiles take four rows of bfloat16 and more, and sum in another order than vectors do.
    tiles = dtype == torch.bfloat16 and _C.cpu_capability() == "amx"
    of = arguments(dtype, rows=(5, 4, 6) if tiles else (2, 1, 4))
    together, _, _ = run(of)
    for b in range(3):
        rows = slice(*of["query_offsets"][b : b + 2].tolist())
        keys = slice(*of["key_offsets"][b : b + 2].tolist())
        own = {name: of[name][rows] for name in ("hidden", "slots", "query_index", "cos", "sin")}
        own |= {name: of[name][keys] for name in ("key_slots", "key_index")}
        own["query_offsets"] = torch.tensor([0, rows.stop - rows.start])
        own["key_offsets"] = torch.tensor([0, keys.stop - keys.start])
        assert torch.equal(run({**of, **own})[0], together[rows])


@pytest.mark.parametrize("dtype", FLOATS)
def test_unused_rows_are_left_out(dtype: torch.dtype) -> None:
    of = arguments(dtype, rows=(2, 1, 3))
    expected = run(of)
    # Between, before and behind the others, and a sequence of nothing else.
    places, offsets = torch.tensor([1, 3, 4, 8, 9, 10]), torch.tensor([0, 4, 6, 8, 12])
    keys = of["key_offsets"]
    wide = {**of, "query_offsets": offsets}
    wide["key_offsets"] = torch.stack([*keys[:3], keys[2], keys[3]])
    unused = {"hidden": NAN, "cos": NAN, "sin": NAN, "slots": -1, "query_index": -1}
    for name, value in unused.items():
        wide[name] = torch.full((12, *of[name].shape[1:]), value, dtype=of[name].dtype)
        wide[name][places] = of[name]
    output, *stores = run(wide)
    assert torch.equal(output[places], expected[0])
    assert output[[0, 2, 5, 6, 7, 11]].isnan().all()
    for mine, theirs in zip(stores, expected[1:], strict=True):
        assert torch.equal(mine, theirs)


def test_other_strides() -> None:
    of = arguments(torch.float32)
    expected = run(of)
    wide = [
        None if each is None or each.dim() < 2 else torch.cat([each, each], 1)[:, : each.shape[1]]
        for each in of["weights"]
    ]
    of["weights"] = [
        each if other is None else other for each, other in zip(of["weights"], wide, strict=True)
    ]
    hidden = torch.cat([of["hidden"], of["hidden"]], 1)[:, :HIDDEN]
    output = torch.ops.lazyllm.decoder_layer_(*{**of, "hidden": hidden}.values())
    assert torch.equal(output, expected[0])


def test_the_rows_that_enter_stay_as_they_are() -> None:
    of = arguments(torch.float32)
    before = of["hidden"].clone()
    torch.ops.lazyllm.decoder_layer_(*of.values())
    assert torch.equal(of["hidden"], before)


WEIGHTS = ["input_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"]
OPTIONAL = ["q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm"]
OPTIONAL += ["attention_out_norm", "mlp_out_norm"]


@pytest.mark.parametrize("name", WEIGHTS + OPTIONAL)
@pytest.mark.parametrize("what", ["size", "dtype", "gradient"])
def test_refuses_a_wrong_parameter(name: str, what: str) -> None:
    of = arguments(torch.float32)
    own = of["weights"] if name in WEIGHTS else of["optional"]
    place = (WEIGHTS if name in WEIGHTS else OPTIONAL).index(name)
    right = own[place]
    if what == "size":
        # Another number of rows would be another number of heads, or of inner features.
        own[place] = right[:-1] if name not in ("q", "gate") else right[:, :-1]
    if what == "dtype":
        own[place] = right.bfloat16()
    if what == "gradient":
        own[place] = right.clone().requires_grad_()
    wrong = "expected" if what != "gradient" else "requires grad"
    with pytest.raises(RuntimeError, match=rf"^lazyllm::decoder_layer_: .*\b{name}\b.*{wrong}"):
        run(of)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden": torch.zeros(1, 39)}, "decoder_layer_: q: expected size 39 in dimension 1"),
        ({"hidden": torch.zeros(40)}, "decoder_layer_: hidden: expected 2 dimensions"),
        ({"weights": []}, "decoder_layer_: weights: expected 9 tensors, got 0"),
        ({"optional": [None]}, "decoder_layer_: optional: expected 8 tensors, got 1"),
        (
            {"activation": "relu"},
            "decoder_layer_: activation: expected silu or gelu_tanh, got relu",
        ),
        ({"eps": -1.0}, "decoder_layer_: eps: expected at least 0, got -1"),
        ({"cos": torch.zeros(1, 9)}, "decoder_layer_: cos: expected"),
        ({"slots": torch.tensor([99])}, "kv_append_: slots: expected"),
        ({"key_slots": torch.tensor([0])}, "lazy_attention: key_index: expected"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses(change: dict[str, Any], sentence: str) -> None:
    of = {**arguments(torch.float32), **change}
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        run(of)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ops.decoder_layer_(**of)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"slots": None}, "slots: expected a tensor, got NoneType"),
        ({"slots": torch.tensor([1.0])}, "slots: expected int64, got float32"),
        ({"cos": torch.zeros(1, DIM // 2).bfloat16()}, "cos: expected float32, got bfloat16"),
        ({"weights": None}, "weights: expected a list, got NoneType"),
        ({"weights": [None]}, "weights[0]: expected a tensor, got NoneType"),
        (
            {"optional": [None, torch.tensor([1])]},
            "optional[1]: expected float32 or bfloat16 or float16, got int64",
        ),
        ({"eps": True}, "eps: expected float, got bool"),
        ({"window": 2.0}, "window: expected int, got float"),
        ({"interleaved": 1}, "interleaved: expected bool, got int"),
        ({"activation": None}, "activation: expected str, got NoneType"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_types_are_checked(change: dict[str, Any], sentence: str) -> None:
    of = {**arguments(torch.float32), **change}
    with pytest.raises(TypeError, match=f"^{re.escape(f'lazyllm::decoder_layer_: {sentence}')}$"):
        ops.decoder_layer_(**of)


def test_the_wrapper_does_the_same() -> None:
    of = arguments(torch.float32)
    expected = run(of)[0]
    assert torch.equal(ops.decoder_layer_(**of), expected)


def test_opcheck() -> None:
    of = arguments(torch.float32)
    torch.library.opcheck(torch.ops.lazyllm.decoder_layer_.default, tuple(of.values()))
