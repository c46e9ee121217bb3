"""A cache that one thread uses is refused to every other one, and the first is not disturbed."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lazyllm_ext
from lazyllm_ext import LazyCache
from lazyllm_ext.hf.models.versions import CACHE_NAME
from lazyllm_ext.state import to_tensors

from .tiny import PRUNING, tiny_model

IN_USE = (
    f"{CACHE_NAME}: expected a cache that one thread uses at a time, got one that another thread "
    "is using"
)
NEW = torch.tensor([[5, 6, 7]])
GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


class Pausing:
    """A streamer that waits after a few tokens, between two steps."""

    def __init__(self) -> None:
        self.paused, self.go_on, self.calls = threading.Event(), threading.Event(), 0

    def put(self, tokens: Tensor) -> None:
        self.calls += 1
        if self.calls == 3:
            self.paused.set()
            assert self.go_on.wait(60)

    def end(self) -> None: ...


class Generating:
    """`generate` on a cache in a thread, stopped between two steps until `finish`."""

    def __init__(self, lazy: Any, cache: LazyCache, ids: Tensor):
        self._streamer = Pausing()
        self._result: list[Tensor] = []
        options = {CACHE_NAME: cache, "streamer": self._streamer, "max_new_tokens": 8, **GREEDY}

        def run() -> None:
            self._result.append(lazy.model.generate(ids, **options))

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert self._streamer.paused.wait(60)

    def finish(self) -> Tensor:
        self._streamer.go_on.set()
        self._thread.join(60)
        return self._result[0]


@pytest.fixture(scope="module")
def lazy() -> Any:
    return lazyllm_ext.apply(tiny_model("llama"), PRUNING)


@pytest.fixture
def whole(ids: Tensor) -> Tensor:
    return torch.cat([ids[:1], NEW], dim=1)


@pytest.fixture
def busy(lazy: Any, ids: Tensor, whole: Tensor) -> Iterator[tuple[LazyCache, Generating]]:
    cache = lazy.prefill(ids[:1])
    generating = Generating(lazy, cache, whole)
    yield cache, generating
    generating.finish()


WAYS: dict[str, Callable[[Any, LazyCache, Path], object]] = {
    "save": lambda lazy, cache, path: lazy.save(cache, path / "x"),
    "copy": lambda lazy, cache, path: cache.copy(),
    "copy.copy": lambda lazy, cache, path: copy.copy(cache),
    "deepcopy": lambda lazy, cache, path: copy.deepcopy(cache),
    "pickle": lambda lazy, cache, path: pickle.dumps(cache),
    "crop": lambda lazy, cache, path: cache.crop(-1),
    "select": lambda lazy, cache, path: cache.batch_select_indices(torch.tensor([0])),
    "repeat": lambda lazy, cache, path: cache.batch_repeat_interleave(2),
    "reset": lambda lazy, cache, path: cache.reset(),
    "report": lambda lazy, cache, path: cache.report(),
    "forward": lambda lazy, cache, path: lazy.model(NEW, logits_to_keep=1, **{CACHE_NAME: cache}),
    "generate": lambda lazy, cache, path: lazy.model.generate(NEW, **{CACHE_NAME: cache}),
}


def test_all_is_refused_between_two_steps(
    lazy: Any, busy: tuple[LazyCache, Generating], ids: Tensor, whole: Tensor, tmp_path: Path
) -> None:
    cache, generating = busy
    for name, way in WAYS.items():
        with pytest.raises(ValueError) as error:
            way(lazy, cache, tmp_path)
        assert str(error.value) == IN_USE, name
    assert not list(tmp_path.iterdir())
    got = generating.finish()
    alone = lazy.prefill(ids[:1])
    assert torch.equal(got, Generating(lazy, alone, whole).finish())
    mine, theirs = (to_tensors(each.state, each.plan.spec) for each in (cache, alone))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    cache.copy()  # it is free again
    cache.reset()


def test_a_generation_that_fails_gives_the_cache_back(lazy: Any, whole: Tensor) -> None:
    cache = lazy.new_cache()

    def fail(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lazy.model.generate(whole, lazy_progress=fail, **{CACHE_NAME: cache})
    refused: list[str] = []

    def other() -> None:
        try:
            cache.copy()
        except ValueError as error:
            refused.append(str(error))
        cache.reset()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(60)
    assert "got one whose last call was interrupted" in refused[0]
    assert cache.state is None


class Copying:
    """A streamer that copies the cache of its own generation after each step."""

    def __init__(self, cache: LazyCache):
        self.cache = cache
        self.copies: list[LazyCache] = []

    def put(self, tokens: Tensor) -> None:
        if self.cache.state is not None:
            self.copies.append(self.cache.copy())
            with pytest.raises(ValueError, match="that no generation is using, got one in use"):
                self.cache.reset()

    def end(self) -> None: ...


def test_a_generation_within_a_generation(lazy: Any, whole: Tensor) -> None:
    """It is refused, and the one around it gives what it gives alone."""
    options = {"max_new_tokens": 4, **GREEDY}
    expected = lazy.model.generate(whole, **options)
    cache = lazy.new_cache()

    def within(seen: Tensor, scores: Tensor) -> Tensor:
        with pytest.raises(ValueError, match="that no generation is using, got one in use"):
            lazy.model.generate(torch.cat([seen, seen], dim=1), **{CACHE_NAME: cache}, **options)
        return scores

    got = lazy.model.generate(whole, logits_processor=[within], **{CACHE_NAME: cache}, **options)
    assert torch.equal(got, expected)


def test_a_copy_by_the_generation_itself(lazy: Any, whole: Tensor) -> None:
    """Between two steps it may: what goes on from the copy gives what the generation gave."""
    cache = lazy.new_cache()
    streamer = Copying(cache)
    said = lazy.model.generate(
        whole, streamer=streamer, max_new_tokens=6, **{CACHE_NAME: cache}, **GREEDY
    )
    twin = streamer.copies[2]
    held = twin.get_seq_length()
    assert whole.size(1) < held < cache.get_seq_length()
    left = said.size(1) - held - 1
    again = lazy.model.generate(
        said[:, : held + 1], max_new_tokens=left, **{CACHE_NAME: twin}, **GREEDY
    )
    assert torch.equal(again, said)


def test_threads_that_hammer(lazy: Any, ids: Tensor, tmp_path: Path) -> None:
    """What gets through is a state between two calls, whole: each is refused, or it is right."""
    cache = lazy.prefill(ids[:1])
    stop = threading.Event()
    seen: list[int] = []
    faults: list[str] = []

    def hammer(number: int) -> None:
        path = tmp_path / str(number)
        while not stop.is_set():
            try:
                seen.append(cache.copy().get_seq_length())
                lazy.save(cache, path)
            except ValueError as error:
                faults.append(str(error))
            else:
                seen.append(lazy.load(path).get_seq_length())

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    done = [13]
    for _ in range(20):
        try:
            lazy.model(NEW, logits_to_keep=1, **{CACHE_NAME: cache})
        except ValueError as error:
            faults.append(str(error))
        else:
            done.append(done[-1] + 3)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert set(faults) <= {IN_USE}
    assert set(seen) <= set(done)
    assert cache.get_seq_length() == done[-1]
