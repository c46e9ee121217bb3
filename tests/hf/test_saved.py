"""A prefill that is read once, copied for every question, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lazyllm_ext
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.state import to_tensors

from .tiny import PRUNING, assert_same_generation, generate, keep_all, left_padded, tiny_model

TWO_BEAMS = {"num_beams": 2}
QUESTIONS = [[11, 12, 13], [40, 41], [70, 71, 72, 73, 74]]


def _questions(document: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The document and one of the questions each."""
    batch = document["input_ids"].size(0)
    asked = []
    for question in QUESTIONS:
        ids = torch.cat([document["input_ids"], torch.tensor([question] * batch)], dim=1)
        mask = torch.ones_like(ids)
        mask[:, : document["input_ids"].size(1)] = document["attention_mask"]
        asked.append({"input_ids": ids, "attention_mask": mask})
    return asked


def _documents(ids: Tensor) -> dict[str, dict[str, Tensor]]:
    return {
        "one": {"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])},
        "padded": left_padded([ids[0], ids[1, :5], ids[2, :9]]),
    }


@pytest.mark.parametrize("document", ["one", "padded"])
def test_as_a_fresh_run_with_nothing_dropped(model: nn.Module, ids: Tensor, document: str) -> None:
    lazy = lazyllm_ext.apply(model, keep_all(model))
    prompt = _documents(ids)[document]
    cache = lazy.prefill(**prompt)
    for asked in _questions(prompt):
        got = generate(model, **asked, past_key_values=cache.copy())
        assert_same_generation(got, generate(model, **asked))
        assert lazy.report().prompt_tokens == int(asked["attention_mask"].sum())
    assert cache.get_seq_length() == 13


@pytest.mark.parametrize("document", ["one", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_saved_and_loaded(name: str, document: str, ids: Tensor, tmp_path: Path) -> None:
    """In another process: another instance of the model. Every question, to the last bit."""
    schedule = PRUNING if name == "llama" else {"boundaries": [{"layer": 1, "keep": 0.4}]}
    lazy = lazyllm_ext.apply(tiny_model(name), schedule)
    prompt = _documents(ids)[document]
    cache = lazy.prefill(**prompt)
    path = tmp_path / "document.safetensors"
    lazy.save(cache, path)
    other = lazyllm_ext.apply(tiny_model(name), {**schedule, "name": "the same"})
    loaded = other.load(path)
    assert loaded.get_seq_length() == 13
    assert loaded.nbytes() <= cache.nbytes()
    for asked in _questions(prompt):
        expected = generate(lazy.model, 20, **asked, past_key_values=cache.copy())
        got = generate(other.model, 20, **asked, past_key_values=loaded.copy())
        assert_same_generation(got, expected, tolerance=0)
        assert other.report().tokens_per_stage == lazy.report().tokens_per_stage


def test_tokens_of_32_bits_and_files_without_them(
    model: nn.Module, ids: Tensor, tmp_path: Path
) -> None:
    lazy = lazyllm_ext.apply(model, PRUNING)
    path = tmp_path / "document"
    lazy.save(lazy.prefill(ids[:1].int()), path)
    asked = _questions(_documents(ids)["one"])[0]
    expected = generate(model, **asked, past_key_values=lazy.load(path))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert torch.equal(tensors.pop("document"), ids[:1])
    del metadata["checksums"]  # as versions before wrote it
    save_file(tensors, path, {**metadata, "format": "lazyllm-ext prefill 1"})
    assert_same_generation(
        generate(model, **asked, past_key_values=lazy.load(path)), expected, tolerance=0
    )


@pytest.mark.parametrize("document", ["one", "padded"])
def test_another_document_is_refused(
    model: nn.Module, ids: Tensor, document: str, tmp_path: Path
) -> None:
    """By its tokens, as they were read, loaded, repeated for beams, cropped or gone on from."""
    lazy = lazyllm_ext.apply(model, PRUNING)
    prompt = _documents(ids)[document]
    cache = lazy.prefill(**prompt)
    lazy.save(cache, tmp_path / "document")
    beams = cache.copy()
    beams.batch_repeat_interleave(2)
    asked = _questions(prompt)[0]
    other = {**asked, "input_ids": asked["input_ids"].clone()}
    other["input_ids"][-1, 9] += 1
    read, given = int(asked["input_ids"][-1, 9]), int(other["input_ids"][-1, 9])
    for begun, ways in ((cache, {}), (lazy.load(tmp_path / "document"), {}), (beams, TWO_BEAMS)):
        with pytest.raises(ValueError) as error:
            generate(model, **other, past_key_values=begun, **ways)
        assert str(error.value) == (
            f"input_ids: expected to begin with the 13 tokens of the document that {CACHE_NAME} "
            f"holds, got {given} instead of {read} in column 9"
        )
        generate(model, **asked, past_key_values=begun, **ways)  # it is as it was
    cropped = lazy.prefill(**prompt)
    cropped.crop(9)
    cropped.document = None  # as if it were not known
    expected = generate(model, **other, past_key_values=cropped.copy())
    cropped = lazy.prefill(**prompt)
    cropped.crop(9)  # the difference comes after it
    got = generate(model, **other, past_key_values=cropped)
    assert_same_generation(got, expected, tolerance=0)


def test_what_is_not_the_document_is_not_compared(model: nn.Module, ids: Tensor) -> None:
    """The ids of columns without a token, and questions alone, with the mask of everything."""
    lazy = lazyllm_ext.apply(model, PRUNING)
    prompt = _documents(ids)["padded"]
    document = lazy.prefill(**prompt)
    asked = _questions(prompt)[0]
    expected = generate(model, **asked, past_key_values=document.copy())
    blank = asked["attention_mask"] == 0
    again = {**asked, "input_ids": asked["input_ids"].masked_fill(blank, 77)}
    got = generate(model, **again, past_key_values=document.copy())
    got.sequences[:, :16] = expected.sequences[:, :16]
    assert_same_generation(got, expected, tolerance=0)
    for width in (3, 20):  # shorter and longer than the document
        question = torch.arange(11, 11 + width).repeat(3, 1)
        mask = torch.cat([prompt["attention_mask"], torch.ones_like(question)], dim=1)
        ways = {"attention_mask": mask, "max_new_tokens": 2, "min_new_tokens": 2}
        whole = torch.cat([prompt["input_ids"], question], dim=1)
        both = model.generate(whole, past_key_values=document.copy(), **ways)
        alone = model.generate(question, past_key_values=document.copy(), **ways)
        assert torch.equal(alone[:, width:], both[:, 13 + width :])


@pytest.mark.parametrize("document", ["transposed", "cropped"])
def test_tensors_that_are_views_are_saved(
    model: nn.Module, ids: Tensor, document: str, tmp_path: Path
) -> None:
    lazy = lazyllm_ext.apply(model, PRUNING)
    prompt = _documents(ids)["padded"]
    if document == "transposed":
        prompt = {name: tensor.t().contiguous().t() for name, tensor in prompt.items()}
    cache = lazy.prefill(**prompt)
    if document == "cropped":
        cache.crop(11)
    lazy.save(cache, tmp_path / "document")
    asked = _questions(prompt)[0]
    expected = generate(model, **asked, past_key_values=cache)
    got = generate(model, **asked, past_key_values=lazy.load(tmp_path / "document"))
    assert_same_generation(got, expected, tolerance=0)


@pytest.mark.parametrize("max_revive", [None, 1])
@pytest.mark.parametrize("document", ["one", "padded"])
def test_copies_share_what_is_there(
    model: nn.Module, ids: Tensor, document: str, max_revive: int | None
) -> None:
    """The original and its copies go on in turn, in the same rows up to the fork."""
    lazy = lazyllm_ext.apply(model, {**PRUNING, "max_revive": max_revive})
    prompt = _documents(ids)[document]
    asked = _questions(prompt)
    apart = [copy.deepcopy(lazy.prefill(**prompt)) for _ in asked]
    expected = [
        generate(model, 20, **one, past_key_values=own)
        for one, own in zip(asked, apart, strict=True)
    ]
    cache = lazy.prefill(**prompt)
    copies = [cache.copy(), cache.copy().copy(), cache]
    assert len({one.state.keys[0].data_ptr() for one in copies if one.state is not None}) == 1
    for one, own, wanted in zip(asked, copies, expected, strict=True):
        got = generate(model, 20, **one, past_key_values=own)
        assert_same_generation(got, wanted, tolerance=0)
    # Each once more, a crop and a turn: nobody has written into another's rows.
    for one, own, other in zip(asked, copies, apart, strict=True):
        width = one["input_ids"].size(1)
        results = []
        for past in (own, other):
            past.crop(width)
            again = {name: torch.cat([t, t[:, -2:]], dim=1) for name, t in one.items()}
            results.append(generate(model, 20, **again, past_key_values=past))
        assert_same_generation(*results, tolerance=0)


def test_after_turns_and_crops(model: nn.Module, ids: Tensor, tmp_path: Path) -> None:
    """A conversation is saved as well; a crop leaves holes in the stores."""
    lazy = lazyllm_ext.apply(model, PRUNING)
    cache = generate(model, input_ids=ids[:2]).past_key_values
    cache.crop(-4)
    lazy.save(cache, tmp_path / "turn.safetensors")
    loaded = lazy.load(tmp_path / "turn.safetensors")
    for past in (cache, loaded):
        past.reorder_cache(torch.tensor([1, 0, 1]))
    tokens = ids[:, :6]
    got, expected = (
        model(tokens, past_key_values=past, logits_to_keep=1).logits for past in (loaded, cache)
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize("max_revive", [None, 1])
@pytest.mark.parametrize(
    "done", ["turn", "crop", "repeat", "repeat_crop", "drop", "empty", "beams"]
)
def test_whatever_was_done_before(
    model: nn.Module, ids: Tensor, done: str, max_revive: int | None, tmp_path: Path
) -> None:
    """What a file may hold: it is loaded as it is, and no check takes it for damaged."""
    lazy = lazyllm_ext.apply(model, {**PRUNING, "max_revive": max_revive})
    prompt = _documents(ids)["padded"]
    if done in ("turn", "crop"):
        cache = generate(model, 20, **prompt).past_key_values
    elif done == "beams":
        cache = generate(model, **prompt, num_beams=3).past_key_values
    else:
        cache = lazy.prefill(**prompt)
    if done.startswith("repeat"):
        cache.batch_repeat_interleave(4)
    if done.endswith("crop"):
        cache.crop(-4)
    if done == "drop":
        cache.batch_select_indices(torch.tensor([2, 2, 0]))
    if done == "empty":
        cache.crop(-13)
    if done == "repeat_crop":  # four sequences give up the same slots: more than there are
        assert max(cache.state.freed) > max(cache.state.used_bound)
    lazy.save(cache, tmp_path / "document")
    loaded = lazy.load(tmp_path / "document")
    expected = to_tensors(cache.state, cache.plan.spec)
    got = to_tensors(loaded.state, loaded.plan.spec)
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name
    assert (loaded.columns, loaded.batch_size) == (cache.columns, cache.batch_size)


class TestReport:
    def test_what_a_loaded_cache_holds(self, model: nn.Module, ids: Tensor, tmp_path: Path) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        cache = lazy.prefill(**left_padded([ids[0], ids[1, :5]]))
        lazy.save(cache, tmp_path / "x")
        loaded, before = lazy.load(tmp_path / "x").report(), cache.report()
        assert before.unknown == []
        for name in loaded.unknown:
            assert not any(getattr(loaded, name) or [])
        assert {"ttft_seconds", "prompt_tokens", "generated_tokens"} <= {*loaded.unknown}
        assert (loaded.ttft_seconds, loaded.decode_seconds) == (None, None)
        assert (loaded.cached_tokens, loaded.prompt_tokens, loaded.generated_tokens) == (18, 0, 0)
        assert [one.cached_tokens for one in loaded.per_sequence] == [13, 5]
        same = {
            "sequences", "tokens_total", "tokens_per_stage", "tokens_per_layer", "dense_kv_bytes",
            "prompt_computed_percent", "boundary_layers", "schedule",
        }  # fmt: skip
        for name in same:
            assert getattr(loaded, name) == getattr(before, name), name
        assert lazyllm_ext.Report.from_dict(loaded.to_dict()) == loaded

    def test_once_it_is_used(self, model: nn.Module, ids: Tensor, tmp_path: Path) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING)
        lazy.save(lazy.prefill(ids[:1]), tmp_path / "x")
        cache = lazy.load(tmp_path / "x")
        generate(model, input_ids=torch.cat([ids, ids[:, :4]], dim=1)[:1], past_key_values=cache)
        report = lazy.report()
        assert report.unknown == []
        assert (report.cached_tokens, report.prompt_tokens, report.generated_tokens) == (13, 4, 8)
        assert report.ttft_seconds is not None

    def test_of_nothing(self, model: nn.Module) -> None:
        with pytest.raises(ValueError, match="a cache that has been used, got an empty one"):
            lazyllm_ext.apply(model, PRUNING).new_cache().report()


class TestBeams:
    @pytest.mark.parametrize("way", [{"num_beams": 3}, {"do_sample": True, "top_k": 1}])
    def test_each_beam_is_a_sequence(self, model: nn.Module, ids: Tensor, way: Any) -> None:
        lazy = lazyllm_ext.apply(model, keep_all(model))
        cache = lazy.prefill(ids[:2])
        asked = torch.cat([ids[:2], torch.tensor([[11, 12, 13]] * 2)], dim=1)
        several = {**way, "num_return_sequences": 3}
        message = r"; for beams or several answers to each, call \w+\.batch_repeat_interleave\(3\)"
        with pytest.raises(ValueError, match=rf"expected 2 sequences .* got 6{message} before"):
            generate(model, input_ids=asked, past_key_values=cache.copy(), **several)
        cache.batch_repeat_interleave(3)
        got = generate(model, input_ids=asked, past_key_values=cache, **several)
        assert_same_generation(got, generate(model, input_ids=asked, **several))


class TestRefused:
    @pytest.fixture
    def lazy(self, model: nn.Module) -> Any:
        return lazyllm_ext.apply(model, PRUNING)

    @pytest.fixture
    def path(self, lazy: Any, ids: Tensor, tmp_path: Path) -> Path:
        path = tmp_path / "document.safetensors"
        lazy.save(lazy.prefill(ids), path)
        return path

    @pytest.mark.parametrize("change", ["weights", "family", "dtype", "rope"])
    def test_another_model(self, path: Path, change: str) -> None:
        other = tiny_model("qwen3" if change == "family" else "llama")
        if change == "weights":
            other.model.layers[3].mlp.up_proj.weight.data[5] += 0.5
        if change == "rope":
            other.model.rotary_emb.inv_freq.mul_(0.5)
        if change == "dtype":
            other = other.to(torch.bfloat16)
        with pytest.raises(ValueError, match="expected a prefill of this model"):
            lazyllm_ext.apply(other, PRUNING).load(path)

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"window": 4}, "window"), ({"boundaries": PRUNING["boundaries"][:1]}, "boundaries")],
    )
    def test_another_schedule(self, path: Path, change: Any, named: str) -> None:
        lazy = lazyllm_ext.apply(tiny_model("llama"), {**PRUNING, **change})
        with pytest.raises(ValueError, match=f"under a schedule with other {named}"):
            lazy.load(path)

    def test_other_files(self, lazy: Any, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="expected a saved prefill, got no file"):
            lazy.load(tmp_path / "none.safetensors")
        text = tmp_path / "text"
        text.write_text("not tensors at all")
        with pytest.raises(ValueError, match="or another file"):
            lazy.load(text)
        save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
        with pytest.raises(ValueError, match="got another file"):
            lazy.load(tmp_path / "weights.safetensors")

    def test_caches(self, lazy: Any, ids: Tensor, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="got an empty one"):
            lazy.save(lazy.new_cache(), tmp_path / "empty")
        other = lazyllm_ext.apply(tiny_model("llama"), PRUNING)
        with pytest.raises(ValueError, match="got another one's"):
            lazy.save(other.prefill(ids), tmp_path / "other")

    def test_a_file_that_cannot_be_written(self, lazy: Any, ids: Tensor, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none" / "x"):
            with pytest.raises(OSError, match=f"path: cannot write {path}: "):
                lazy.save(lazy.prefill(ids), path)
