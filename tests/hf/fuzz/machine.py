"""Random sequences of what a user can do, with LazyLLM and without: equal, or refused by name.

Two models have the same weights. Every step is done to both, and LazyLLM, with schedules that
keep all tokens, comes and goes on one of them. A call gives what transformers gives, to rounding,
or ends with an error of ours, one sentence. While nothing but `apply` was done to the model, what
docs/generating.md lists may not be refused; without LazyLLM both are equal to rounding, too.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor

import lazyllm_ext
from lazyllm_ext.hf.models.versions import CACHE_NAME

from ..tiny import left_padded
from . import twins
from .calls import FORWARDS, SERVED, WAYS, adapter_config, prompt
from .edits import EDITS, HOOKS, PLACES
from .twins import Outcome, check_refusal, check_same, new_model, outcome

COUNTS: Counter[str] = Counter()  # of calls: equal, refused, failed alike

ways = st.sampled_from(sorted(WAYS))
seeds = st.integers(0, 5)


def keep_all(model: Any, window: int) -> dict[str, Any]:
    """Boundaries wherever they may be, which drop nothing."""
    full = [
        layer.window == 0 for layer in lazyllm_ext.LazyDecoder.from_model(model, "dense").layers
    ]
    return {
        "boundaries": [{"layer": i, "keep": 1.0} for i, yes in enumerate(full[:-1]) if yes],
        "window": window,
        "pool": 3,
    }


class Conversation:
    """The caches of both models, and the tokens that they hold."""

    def __init__(self, ours: Any, theirs: Any, ids: Tensor, lazy: Any):
        self.ours, self.theirs, self.ids, self.lazy = ours, theirs, ids, lazy


class Fuzz(RuleBasedStateMachine):
    """The machine; a rule is something that a user does."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    def start(self, family: str) -> None:
        self.family = family
        self.ours, self.theirs = new_model(family), new_model(family)
        self.wrappers: tuple[Any, Any] | None = None  # of PEFT
        self.lazy: Any = None
        self.dense = False  # whether refusals go to transformers
        self.changed = False  # whether anything but LazyLLM was done to the models
        self.hooks: list[Any] = []
        self.talk: Conversation | None = None

    def teardown(self) -> None:
        self.folder.cleanup()

    # What is compared

    def compare(
        self, call: Callable[[Any], Any], *, served: bool = False, talk: Conversation | None = None
    ) -> tuple[Outcome, Outcome]:
        """Do the same to both models: equal, refused by ours, or failed alike."""
        expected = outcome(lambda: call(self.theirs))
        got = outcome(lambda: call(self.ours))
        half = next(self.theirs.parameters()).dtype != torch.float32
        if got.error is not None:
            if expected.error is not None:
                COUNTS["failed alike"] += 1
                if self.lazy is None:
                    assert type(got.error) is type(expected.error), (got, expected)
                return got, expected
            if self.lazy is None:
                raise AssertionError("without LazyLLM, but not as transformers") from got.error
            check_refusal(got.error)
            COUNTS["refused"] += 1
            refusable = self.changed or not served
            if self.dense and isinstance(got.error, lazyllm_ext.NotSupportedError) and talk is None:
                raise AssertionError("on_error='dense', but refused") from got.error
            if not refusable:
                raise AssertionError("refused, though nothing was changed") from got.error
            return got, expected
        slips = (AttributeError, TypeError, *([IndexError] if self.changed else []))
        if isinstance(expected.error, slips):
            COUNTS["a slip of transformers"] += 1  # no argument that it refuses
            return got, expected
        assert expected.error is None, f"transformers fails, LazyLLM does not: {expected!r}"
        check_same(got.value, expected.value, half and self.lazy is not None)
        COUNTS["equal"] += 1
        return got, expected

    def both(self, do: Callable[[Any, int], Any]) -> None:
        """Change both models in the same way; what transformers refuses is not done to either."""
        torch.manual_seed(5)
        expected = outcome(lambda: do(self.theirs, 1))
        torch.manual_seed(5)
        got = outcome(lambda: do(self.ours, 0))
        if (got.error is None) != (expected.error is None):
            if got.error is not None and self.lazy is not None:
                check_refusal(got.error)
            else:
                raise AssertionError(f"{got!r} for {expected!r}") from got.error
            self.start(self.family)  # they are no twins any more
            return
        self.changed = True

    # Rules: LazyLLM comes and goes

    @initialize(family=st.sampled_from(twins.FAMILIES))
    def begin(self, family: str) -> None:
        self.start(family)

    @precondition(lambda self: self.changed)
    @rule(family=st.sampled_from(twins.FAMILIES))
    def begin_again(self, family: str) -> None:
        self.start(family)

    @precondition(lambda self: self.lazy is None)
    @rule(
        window=st.sampled_from([0, 1, 3, 20]), on_error=st.sampled_from(["raise", "raise", "dense"])
    )
    def apply(self, window: int, on_error: str) -> None:
        """`window` 0: schedule dense."""

        def do() -> Any:
            schedule: Any = keep_all(self.ours, window) if window else "dense"
            return lazyllm_ext.apply(self.ours, schedule, on_error=on_error)

        got = outcome(do)
        if got.error is None:
            self.lazy, self.dense = got.value, on_error == "dense"
            self.talk = None
            return
        check_refusal(got.error)
        assert self.changed, got

    @precondition(lambda self: self.lazy is not None)
    @rule()
    def remove(self) -> None:
        self.lazy.remove()
        self.lazy = self.talk = None

    @precondition(lambda self: self.lazy is not None)
    @rule()
    def copy_of_the_model(self) -> None:
        """An applied model's copy is an applied model."""
        self.compare(lambda model: FORWARDS["plain"](copy.deepcopy(model), prompt(0)))

    @rule()
    def pickled(self) -> None:
        def call(model: Any) -> Any:
            file = io.BytesIO()
            pickle.dump(model, file)
            file.seek(0)
            return FORWARDS["plain"](pickle.load(file), prompt(0))

        self.compare(call)

    # Rules: generating

    @rule(way=ways, seed=seeds)
    def generate(self, way: str, seed: int) -> None:
        def call(model: Any) -> Any:
            torch.manual_seed(seed)
            return WAYS[way](model, prompt(seed))

        self.compare(call, served=way in SERVED)

    @rule(way=st.sampled_from(sorted(FORWARDS)), seed=seeds)
    def forward(self, way: str, seed: int) -> None:
        self.compare(lambda model: FORWARDS[way](model, prompt(seed)))

    @precondition(lambda self: self.lazy is not None)
    @rule(way=ways, window=st.sampled_from([1, 4]))
    def a_schedule_for_one_call(self, way: str, window: int) -> None:
        got = outcome(lambda: keep_all(self.theirs, window))
        if got.error is not None:
            return
        schedule = got.value

        def call(model: Any) -> Any:
            torch.manual_seed(0)
            own = {"lazy_schedule": schedule} if model is self.ours else {}
            return WAYS[way](model, prompt(1), **own)

        if not hasattr(type(self.lazy), "_refuse"):
            self.compare(call, served=way in SERVED)

    # PEFT takes the experts' adapters on and off in each call, which two threads cannot.
    @precondition(lambda self: self.lazy and not (self.wrappers and self.family == "mixtral"))
    @rule(first=ways, second=ways)
    def threads(self, first: str, second: str) -> None:
        """Two generations at once; neither draws random numbers, which threads would share."""

        def call(model: Any) -> Any:
            found: list[Outcome] = [Outcome(), Outcome()]

            def run(number: int, way: str) -> None:
                found[number] = outcome(lambda: WAYS[way](model, prompt(number)))

            if model is self.ours:
                threads = [
                    threading.Thread(target=run, args=pair) for pair in enumerate((first, second))
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            else:
                for pair in enumerate((first, second)):
                    run(*pair)
            for one in found:
                if one.error is not None:
                    raise one.error
            return tuple(one.value for one in found)

        if not any("sampl" in way for way in (first, second)):
            self.compare(call)

    # Rules: conversations

    @rule(seed=seeds, sequences=st.integers(1, 3))
    def read(self, seed: int, sequences: int) -> None:
        """A prompt's cache, for what follows."""
        ids = torch.cat([prompt(seed + 10 * i)[:, :9] for i in range(sequences)])
        got, expected = self.compare(lambda model: model(ids, use_cache=True, logits_to_keep=1))
        caches = [getattr(one.value, CACHE_NAME, None) for one in (got, expected)]
        if None not in caches:
            self.talk = Conversation(caches[0], caches[1], ids, self.lazy)

    @precondition(lambda self: self.talk is not None)
    @rule(seed=seeds, columns=st.sampled_from([1, 1, 4]))
    def go_on(self, seed: int, columns: int) -> None:
        talk: Any = self.talk
        more = prompt(seed)[:, :columns].expand(talk.ids.size(0), -1)

        def call(model: Any) -> Any:
            cache = talk.ours if model is self.ours else talk.theirs
            return model(more, logits_to_keep=1, **{CACHE_NAME: cache})

        got, _ = self.compare(call, talk=talk)
        if got.error is None:
            talk.ids = torch.cat([talk.ids, more], dim=1)
        else:
            self.talk = None

    @precondition(lambda self: self.talk is not None)
    @rule(seed=seeds, alone=st.booleans())
    def answer(self, seed: int, alone: bool) -> None:
        """generate with the cache: the whole conversation, or the new ids with the mask of all."""
        talk: Any = self.talk
        more = prompt(seed)[:, :3].expand(talk.ids.size(0), -1)
        whole = torch.cat([talk.ids, more], dim=1)

        def call(model: Any) -> Any:
            cache = talk.ours if model is self.ours else talk.theirs
            # transformers' mask for new ids alone is what is asked of it here: all columns.
            named = {CACHE_NAME: cache, "attention_mask": torch.ones_like(whole)}
            ids = more if alone else whole
            out = WAYS["greedy"](model, ids, **named)
            talk.last = out.sequences[:, ids.size(1) :]
            return out

        got, expected = self.compare(call, talk=talk)
        if got.error is None and expected.error is None and talk.last.size(1) > 1:
            talk.ids = torch.cat([whole, talk.last[:, :-1]], dim=1)
        else:
            self.talk = None

    @precondition(lambda self: self.talk is not None)
    @rule(what=st.sampled_from(["crop", "copy", "repeat", "select", "reorder", "saved"]))
    def cache(self, what: str) -> None:
        """The same to both caches; a saved one is ours alone."""
        talk: Any = self.talk
        sequences = talk.ids.size(0)
        chosen = torch.tensor([sequences - 1, 0][:sequences])

        def do(cache: Any, own: bool) -> Any:
            if what == "crop":
                cache.crop(-2)
            elif what == "repeat":
                cache.batch_repeat_interleave(2)
            elif what == "select":
                cache.batch_select_indices(chosen)
            elif what == "reorder":
                cache.reorder_cache(torch.arange(sequences).flip(0))
            elif what == "copy":
                return cache.copy() if own else copy.deepcopy(cache)
            elif own:
                path = Path(self.folder.name, "saved")
                talk.lazy.save(cache, path)
                return talk.lazy.load(path)
            return cache

        is_ours = talk.lazy is not None and isinstance(talk.ours, lazyllm_ext.hf.cache.LazyCache)
        if what == "saved" and not is_ours:
            return
        expected = outcome(lambda: do(talk.theirs, False))
        got = outcome(lambda: do(talk.ours, is_ours))
        if got.error is not None or expected.error is not None:
            if got.error is not None and is_ours:
                check_refusal(got.error)
            self.talk = None
            return
        talk.ours, talk.theirs = got.value, expected.value
        if what == "crop":
            talk.ids = talk.ids[:, :-2]
        elif what == "repeat":
            talk.ids = talk.ids.repeat_interleave(2, dim=0)
        elif what == "select":
            talk.ids = talk.ids[chosen]
        elif what == "reorder":
            talk.ids = talk.ids.flip(0)

    # Rules: what changes the model

    @rule(what=st.sampled_from(sorted(EDITS)))
    def edit(self, what: str) -> None:
        self.both(lambda model, number: EDITS[what](model))

    @rule(kind=st.sampled_from(sorted(HOOKS)), place=st.sampled_from(sorted(PLACES)))
    def hook(self, kind: str, place: str) -> None:
        self.both(lambda model, n: self.hooks.append(HOOKS[kind](PLACES[place](model))))

    @precondition(lambda self: self.hooks)
    @rule()
    def unhook(self) -> None:
        for handle in self.hooks:
            handle.remove()
        self.hooks.clear()

    @precondition(lambda self: self.wrappers is None)
    @rule(rank=st.sampled_from([2, 4]))
    def adapt(self, rank: int) -> None:
        import peft

        made: list[Any] = [None, None]

        def do(model: Any, number: int) -> None:
            made[number] = peft.get_peft_model(model, adapter_config(rank)).eval()

        self.both(do)
        if None not in made:
            self.wrappers = (made[0], made[1])

    @precondition(lambda self: self.wrappers is not None)
    @rule(
        what=st.sampled_from(["add", "switch", "merge", "unmerge", "delete", "off", "on", "unload"])
    )
    def adapter(self, what: str) -> None:
        wrappers: Any = self.wrappers

        def do(model: Any, number: int) -> Any:
            wrapper = wrappers[number]
            if what == "add":
                wrapper.add_adapter("other", adapter_config(2))
                wrapper.eval()
            elif what == "switch":
                wrapper.set_adapter("other")
            elif what == "merge":
                wrapper.merge_adapter()
            elif what == "unmerge":
                wrapper.unmerge_adapter()
            elif what == "delete":
                wrapper.delete_adapter("other")
            elif what in ("off", "on"):
                layers = wrapper.base_model
                layers.disable_adapter_layers() if what == "off" else layers.enable_adapter_layers()
            else:
                wrapper.merge_and_unload()
            return None

        self.both(do)
        if what == "unload":
            self.wrappers = None

    @precondition(lambda self: self.wrappers is not None)
    @rule(seed=seeds)
    def generate_by_the_wrapper(self, seed: int) -> None:
        wrappers: Any = self.wrappers
        self.compare(
            lambda model: WAYS["greedy"](
                wrappers[int(model is self.theirs)], None, input_ids=prompt(seed)
            )
        )

    @rule(seed=seeds)
    def padded_batch(self, seed: int) -> None:
        """A left-padded batch by single calls: the last logits of each sequence."""
        first, second = prompt(seed)[0], prompt(seed + 1)[0, :4]
        batch = left_padded([first, second])
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        self.compare(lambda model: model(**batch, position_ids=positions, logits_to_keep=1))
