"""Wrong arguments: one sentence that names the argument, and nothing changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lazyllm_ext.ops

from . import comparison
from .builders import BUILDERS, Arguments
from .case import moved

FLOAT32 = torch.float32
BASES: dict[str, dict[str, Any]] = {
    "token_importance": {"rows": [3, 2], "keys": [9, 12], "heads": (4, 2), "dim": 8},
    "select_tokens": {"lengths": [9, 12], "candidates": [8, 12], "targets": [3, 4]},
    "aux_gather": {"stored": 9, "rows": 5, "shape": (3,)},
    "aux_scatter_": {"stored": 9, "rows": 5, "shape": (3,)},
    "kv_append_": {"stored": 9, "tokens": 5, "kv_heads": 2, "dim": 8},
    "lazy_attention": {"rows": [3, 2], "keys": [9, 12], "heads": (4, 2), "dim": 8},
    "linear": {"rows": 5, "features": (8, 6)},
    "gated_activation": {"rows": 5, "dim": 8},
    "rms_norm": {"rows": 5, "dim": 8},
    "rotate": {"rows": 5, "heads": 2, "dim": 8, "half": 3},
}
Change = Callable[[Any], Any]


def _arguments(op: str, device: str = "cpu") -> Arguments:
    arguments = BUILDERS[op](torch.Generator().manual_seed(0), FLOAT32, **BASES[op])
    return moved(arguments, device)


def becomes(value: Any) -> Change:
    return lambda _: value


def entry(place: int, value: int) -> Change:
    """The same tensor with one element changed."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[place] = value
        return tensor

    return change


def first(*values: int) -> Change:
    """The same tensor with other first elements."""
    return lambda tensor: torch.cat([torch.tensor(values), tensor[len(values) :]])


def shorter(tensor: Tensor) -> Tensor:
    return tensor[:-1]


def narrower(tensor: Tensor) -> Tensor:
    return tensor[..., :-1]


def fewer_heads(tensor: Tensor) -> Tensor:
    return tensor[:, :1]


def three_heads(tensor: Tensor) -> Tensor:
    return tensor.repeat(1, 2, 1)[:, :3]


def every_second(tensor: Tensor) -> Tensor:
    """The same shape, the last dimension's stride 2."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def to(dtype: torch.dtype) -> Change:
    return lambda tensor: tensor.to(dtype)


def flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)


def deeper(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


# argument, what is wrong, how it is made so
Row = tuple[str, str, Change]

ATTENTION: list[Row] = [
    ("query", "2 dimensions", lambda query: query[0]),
    ("query", "stride", every_second),
    ("query_index", "length", shorter),
    ("query_offsets", "empty", lambda offsets: offsets[:0]),
    ("key_store", "2 dimensions", lambda store: store[0]),
    ("key_store", "stride", every_second),
    ("key_store", "head_dim", narrower),
    ("key_store", "head count", three_heads),
    ("key_store", "no heads", lambda store: store[:, :0]),
    ("key_store", "dtype of query", to(torch.float16)),
    ("key_index", "length", shorter),
    ("key_offsets", "batch", shorter),
    ("softcap", "negative", becomes(-1.0)),
    ("softcap", "NaN", becomes(float("nan"))),
]
ATTENTION_VALUES: list[Row] = [
    ("query_index", "below -1", entry(1, -2)),
    ("query_offsets", "start", entry(0, 1)),
    ("query_offsets", "descending", entry(1, 6)),
    ("query_offsets", "end", entry(2, 4)),
    ("key_slots", "above the store", entry(3, 24)),
    ("key_slots", "below -1", entry(3, -2)),
    ("key_index", "below -1", entry(3, -2)),
    ("key_offsets", "start", entry(0, -1)),
    ("key_offsets", "descending", entry(1, 22)),
    ("key_offsets", "end", entry(2, 22)),
]

# Wrong on every device.
WRONG: dict[str, list[Row]] = {
    "token_importance": ATTENTION,
    "lazy_attention": [
        *ATTENTION,
        ("value_store", "2 dimensions", lambda store: store[0]),
        ("value_store", "stride", every_second),
        ("value_store", "head_dim", narrower),
        ("value_store", "head count", fewer_heads),
        ("value_store", "slots", shorter),
        ("value_store", "dtype of query", to(torch.bfloat16)),
        ("window", "negative", becomes(-1)),
    ],
    "select_tokens": [
        ("importance", "half", to(torch.float16)),
        ("importance", "batch", shorter),
        ("importance", "stride", every_second),
        ("candidate_offsets", "batch", shorter),
        ("targets", "batch", shorter),
        ("out_offsets", "batch", shorter),
        ("out_size", "negative", becomes(-1)),
        ("pool", "even", becomes(4)),
        ("pool", "zero", becomes(0)),
        ("pool", "negative", becomes(-3)),
        ("protect_first", "negative", becomes(-1)),
        ("protect_last", "negative", becomes(-1)),
    ],
    "aux_gather": [
        ("source", "scalar", lambda source: source[0, 0]),
        ("source", "row stride", every_second),
    ],
    "aux_scatter_": [
        ("destination", "scalar", lambda destination: destination[0, 0]),
        ("destination", "row stride", every_second),
        ("rows", "row stride", every_second),
        ("rows", "width", narrower),
        ("rows", "count", shorter),
        ("rows", "dtype of destination", to(torch.bfloat16)),
    ],
    "kv_append_": [
        ("key_store", "stride", every_second),
        ("value_store", "stride", every_second),
        ("value_store", "head_dim", narrower),
        ("value_store", "slots", shorter),
        ("value_store", "dtype of key_store", to(torch.bfloat16)),
        ("slots", "length", shorter),
        ("key", "stride", every_second),
        ("key", "head_dim", narrower),
        ("key", "head count", fewer_heads),
        ("key", "dtype of key_store", to(torch.bfloat16)),
        ("value", "stride", every_second),
        ("value", "head count", fewer_heads),
        ("value", "count", shorter),
    ],
    "linear": [
        ("x", "stride", every_second),
        ("weight", "stride", every_second),
        ("weight", "features", narrower),
        ("weight", "dtype of x", to(torch.bfloat16)),
        ("bias", "features", shorter),
        ("bias", "dtype of x", to(torch.bfloat16)),
    ],
    "gated_activation": [
        ("gate", "stride", every_second),
        ("up", "width", lambda up: up[:, :-1]),
        ("up", "rows", lambda up: up[:-1]),
        ("up", "dtype of gate", to(torch.bfloat16)),
        ("activation", "unknown", lambda activation: "relu"),
    ],
    "rms_norm": [
        ("x", "stride", every_second),
        ("weight", "width", shorter),
        ("weight", "dtype of x", to(torch.bfloat16)),
        ("eps", "below 0", lambda eps: -eps),
        ("eps", "NaN", lambda eps: float("nan")),
    ],
    "rotate": [
        ("x", "stride", every_second),
        ("cos", "stride", every_second),
        ("cos", "rows", shorter),
        ("cos", "wider than half a head", lambda cos: cos.repeat(1, 2)[:, :5]),
        ("cos", "dtype of x", to(torch.bfloat16)),
        ("sin", "stride", every_second),
        ("sin", "rows", shorter),
        ("sin", "width", narrower),
        ("sin", "dtype of x", to(torch.bfloat16)),
    ],
}
# Wrong by what the tensors hold, which only the CPU looks at.
WRONG_VALUES: dict[str, list[Row]] = {
    "token_importance": ATTENTION_VALUES,
    "lazy_attention": ATTENTION_VALUES,
    "select_tokens": [
        ("lengths", "above the columns", entry(1, 15)),
        ("lengths", "negative", entry(0, -1)),
        ("candidates", "above the length", entry(7, 9)),
        ("candidates", "below -1", entry(3, -2)),
        ("candidates", "descending", entry(3, 0)),
        ("candidates", "twice", first(0, 1, 3, 3, 4, 5, 6, 7)),
        ("candidates", "twice around an unused place", first(0, 1, 3, -1, 3, 4, 5, 6)),
        ("candidates", "descending around an unused place", first(0, 1, 3, -1, 2, 4, 5, 6)),
        ("candidate_offsets", "start", entry(0, 1)),
        ("candidate_offsets", "descending", entry(1, 21)),
        ("candidate_offsets", "end", entry(2, 19)),
        ("out_offsets", "start", entry(0, 1)),
        ("out_offsets", "descending", entry(1, 8)),
        ("out_offsets", "end", entry(2, 6)),
        ("out_offsets", "no room", entry(1, 2)),
    ],
    "aux_gather": [
        ("index", "above the rows", entry(1, 9)),
        ("index", "below -1", entry(1, -2)),
    ],
    "aux_scatter_": [
        ("index", "above the rows", entry(1, 9)),
        ("index", "below -1", entry(1, -2)),
    ],
    "kv_append_": [
        ("slots", "above the store", entry(1, 9)),
        ("slots", "below -1", entry(1, -2)),
    ],
    "linear": [],
    "gated_activation": [],
    "rms_norm": [],
    "rotate": [],
}


AUX_ROWS = (("source", "too deep"), ("destination", "too deep"))


def _of_every_tensor(op: str) -> list[Row]:
    """What is wrong for any tensor argument: dtype and number of dimensions."""
    rows: list[Row] = []
    for name, value in _arguments(op).items():
        if isinstance(value, Tensor):
            wrong = torch.float64 if value.is_floating_point() else torch.int32
            rows += [(name, "dtype", to(wrong)), (name, "too deep", deeper)]
            rows += [(name, "bool", to(torch.bool))]
    # The rows of the Aux Cache may have any number of dimensions.
    return [row for row in rows if row[:2] not in AUX_ROWS]


def _parameters() -> list[Any]:
    parameters = []
    for op in BASES:
        table = [(*row, "cpu") for row in WRONG_VALUES[op]]
        for device in comparison.devices():
            table += [(*row, device) for row in _of_every_tensor(op) + WRONG[op]]
        for argument, what, change, device in table:
            marks = comparison.marks_of(device)
            name = f"{op}-{argument}-{what}-{device}".replace(" ", "_")
            parameters.append(pytest.param(op, argument, change, device, marks=marks, id=name))
    return parameters


@pytest.mark.parametrize("op, argument, change, device", _parameters())
def test_wrong_argument(op: str, argument: str, change: Change, device: str) -> None:
    arguments = _arguments(op, device)
    arguments[argument] = change(arguments[argument])
    written = {name: arguments[name].clone() for name in comparison.written(op)}

    sentence = rf"^lazyllm::{op}: {argument}: .*expected .*got .*"
    with pytest.raises(RuntimeError, match=sentence) as from_operator:
        comparison.operator(op)(*arguments.values())
    with pytest.raises((TypeError, ValueError), match=sentence) as from_wrapper:
        getattr(lazyllm_ext.ops, op)(**arguments)
    if from_wrapper.type is ValueError:
        assert str(from_wrapper.value) == _first_line(from_operator.value)
    assert _names(from_wrapper.value) == _names(from_operator.value)
    for name, before in written.items():
        assert torch.equal(arguments[name], before)


@pytest.mark.smoke
@pytest.mark.parametrize("target, room", [(-1, 1), (-1, 7), (-1, 11), (5, 1), (5, 4)])
def test_room_for_fewer(target: int, room: int) -> None:
    """Nothing is written behind the room, either: test_memory.py runs this, and would see it."""
    arguments = BUILDERS["select_tokens"](
        torch.Generator().manual_seed(0), FLOAT32, lengths=[12], candidates=[12], targets=[target]
    )
    arguments |= {"out_offsets": torch.tensor([0, room]), "out_size": room}
    tokens = 12 if target < 0 else target
    sentence = f"out_offsets: expected room for {tokens} tokens of sequence 0, got {room}"
    with pytest.raises(RuntimeError) as error:
        comparison.operator("select_tokens")(*arguments.values())
    assert _first_line(error.value) == f"lazyllm::select_tokens: {sentence}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


MIXES = [
    pytest.param(op, name, marks=pytest.mark.gpu, id=f"{op}-{name}")
    for op in BASES
    for name, value in _arguments(op).items()
    if isinstance(value, Tensor) and "cuda" in comparison.devices()
]
if MIXES:

    @pytest.mark.parametrize("op, argument", MIXES)
    def test_one_argument_on_the_cpu(op: str, argument: str) -> None:
        arguments = _arguments(op, "cuda")
        arguments[argument] = arguments[argument].cpu()
        names = "|".join(name for name, value in arguments.items() if isinstance(value, Tensor))
        with pytest.raises(RuntimeError, match=rf"^lazyllm::{op}: ({names}): .*expected .*got "):
            comparison.operator(op)(*arguments.values())


def _names(error: BaseException) -> list[str]:
    """The words of its sentence, without the "or" that wrappers write between any two dtypes."""
    return [word for word in re.findall(r"[\w:]+", _first_line(error)) if word != "or"]


def test_a_sentence_is_one_line() -> None:
    arguments = _arguments("aux_gather")
    arguments["index"] = arguments["index"].int()
    with pytest.raises(RuntimeError) as error:
        comparison.operator("aux_gather")(*arguments.values())
    assert _first_line(error.value) == "lazyllm::aux_gather: index: expected int64, got int32"
    assert re.fullmatch(r"[^\n]*", str(error.value))


def test_room_is_looked_at_before_it_is_taken() -> None:
    index = torch.tensor([0, 8])
    with pytest.raises(RuntimeError, match=r"^lazyllm::select_tokens: out_offsets: expected"):
        torch.ops.lazyllm.select_tokens(
            torch.rand(1, 8), index[1:], torch.arange(8), index, torch.tensor([3]),
            torch.tensor([0, 3]), 2**40, 1, 0, 0, True,
        )  # fmt: skip
