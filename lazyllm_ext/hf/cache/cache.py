"""The cache that `generate` hands from step to step: LazyLLM's state as a transformers Cache."""

from __future__ import annotations

import copy
import operator
import reprlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.models.versions import CACHE_NAME, columns_cropped
from lazyllm_ext.state import (
    LazyState,
    aux_nbytes,
    crop_,
    fork_state,
    kv_nbytes,
    select_sequences,
)

from .plan import Plan
from .progress import Progress
from .report import Report, Turn, make_report

_HELD = ("state", "columns", "absent", "document", "turn")
_UNREADABLE = (
    "keys and values of a LazyCache cannot be read by layers, since each layer holds other tokens; "
    "report() says how many"
)


class _Layers:
    """Stands where transformers' caches have their layers.

    A loop over them finds nothing, as transformers' generate makes one on GPUs.
    """

    def _refuse(self, *args: Any) -> NoReturn:
        raise NotSupportedError(f"layers: {_UNREADABLE}")

    __len__ = __getitem__ = _refuse

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class LazyCache(Cache):
    """Everything that one generation, or one conversation, has computed so far.

    A *column* is a place in `input_ids` and its attention mask, of all sequences alike; a token is
    a column whose mask is not 0. transformers counts columns, LazyLLM stores tokens only.

    A cache belongs to the `apply` that made it. One thread uses it at a time, a generation from its
    beginning to its end: what another one does with it meanwhile is a ValueError.
    """

    def __init__(self, plan: Plan):
        layers: Any = _Layers()
        super().__init__(layers=layers)
        self.plan = plan
        self._owner = threading.RLock()  # a generation's own calls are of its thread
        self._clear()

    def reset(self) -> None:
        """Forget everything; the memory is given back.

        Raises:
            ValueError: a generation is using the cache.
        """
        with self.owned():
            self._check_not_generating()
            self._clear()

    def _clear(self) -> None:
        self.state: LazyState | None = None
        self.columns = 0
        # [B, ≤ columns] bool, on the state's device: the columns without a token. Columns past its
        # width hold a token in every sequence. None: there is no column without.
        self.absent: Tensor | None = None
        # [B, ≤ columns] int64, below 0 where there is no token: a document that was read by itself.
        # None: it is not known.
        self.document: Tensor | None = None
        self.running = False
        # Whether the next call's mask is the last one's and ones, and so is not passed.
        self.mask_follows = False
        # Whether generate was given no positions, so that a token's is its index.
        self.counts_positions = False
        self.generating = False
        self.progress: Callable[[Progress], object] | None = None  # of this generation's prompt
        self.turn: Turn | None = None
        # Whether a refusal may leave this generation to transformers, and why it did.
        self.may_fall_back = False
        self.refused: str | None = None

    @contextmanager
    def owned(self) -> Iterator[None]:
        """For a block that uses the cache, in which no other thread may.

        Raises:
            ValueError: another thread is using it.
        """
        if not self._owner.acquire(blocking=False):
            raise ValueError(
                f"{CACHE_NAME}: expected a cache that one thread uses at a time, got one that "
                "another thread is using"
            )
        try:
            yield
        finally:
            self._owner.release()

    def copy(self) -> LazyCache:
        """A cache that goes on from here by itself.

        Keys, values and waiting hidden states that are there are shared; what goes on copies them
        when it needs room.

        Raises:
            ValueError: another thread is using the cache, or its last call was interrupted.
        """
        with self.owned():
            self.check_usable()
            state = self.state
            memo = {} if state is None else {id(state): fork_state(state, self.plan.spec)}
            return self.__deepcopy__(memo)

    __copy__ = copy  # an object beside it on the same state would be neither of the two

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyCache:
        """As `copy`, with memory of its own."""
        twin = LazyCache(self.plan)
        with self.owned():
            self.check_usable()
            twin.__dict__.update(copy.deepcopy(self._held(), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        twin = self.copy()
        return {"plan": twin.plan, **twin._held()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["plan"])  # type: ignore[misc]
        self.__dict__.update(state)

    def _held(self) -> dict[str, Any]:
        """What stays when no call and no generation goes on."""
        return {name: getattr(self, name) for name in _HELD}

    # What happened to the tokens

    def report(self) -> Report:
        """What the latest turn of this conversation did, up to now.

        Of a cache that was loaded and not used since, what it holds: `unknown` names the rest.

        Raises:
            ValueError: nothing has been computed yet, or the last call was interrupted.
        """
        with self.owned():
            self.check_usable()
            if self.state is None:
                raise ValueError("report: expected a cache that has been used, got an empty one")
            return make_report(self.plan, self.state, self.turn or Turn.unknown(self.state))

    def kv_nbytes(self) -> int:
        """Bytes that stored keys and values take, spare room included."""
        return 0 if self.state is None else kv_nbytes(self.state)

    def aux_nbytes(self) -> int:
        """Bytes that the hidden states of waiting tokens take, spare room included."""
        return 0 if self.state is None else aux_nbytes(self.state)

    def nbytes(self) -> int:
        """Bytes of keys, values and waiting hidden states together."""
        return self.kv_nbytes() + self.aux_nbytes()

    # What the forward of a patched model does with it

    def check_usable(self) -> None:
        """Raises ValueError if a call is using the cache, or was interrupted while it did."""
        with self.owned():
            if self.running:
                raise ValueError(
                    f"{CACHE_NAME}: expected a cache that is complete, got one whose last call was "
                    "interrupted or is still running; reset() it or start without a cache"
                )

    def _check_not_generating(self) -> None:
        if self.generating:
            raise ValueError(
                f"{CACHE_NAME}: expected a cache that no generation is using, got one in use"
            )

    def begin_generation(
        self, positions_given: bool, progress: Callable[[Progress], object] | None
    ) -> None:
        """The next forward, however short, is a prompt, and those after it are steps.

        Raises:
            ValueError: a generation is using the cache: this one was called within it.
        """
        self._check_not_generating()
        self.progress = progress
        self.turn = None
        self.generating = True
        self.counts_positions = not positions_given

    def follow(self, model_kwargs: dict[str, Any]) -> None:
        """Before a step of generate: take out what the cache knows, so that no step grows with n.

        generate appends ones to the mask, and one to the last column's position, which is wrong
        where that column holds no token.
        """
        model_kwargs["attention_mask"] = None
        self.mask_follows = True
        if self.counts_positions:
            model_kwargs["position_ids"] = None

    def end_generation(self) -> None:
        """generate is done, finished or not."""
        self.mask_follows = self.counts_positions = self.generating = False
        self.progress = None

    # What transformers asks of a cache

    def __len__(self) -> int:
        return len(self.plan.spec.head_dim)

    def __repr__(self) -> str:
        sequences = 0 if self.state is None else len(self.state.host_length)
        return f"LazyCache({sequences} sequences, {self.columns} columns, {self.nbytes()} bytes)"

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else len(self.state.host_length)

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        """Always; what cropped tokens added to the importance of others stays."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self)

    is_linear = is_dummy = is_sliding

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen so far, whatever was dropped: this is what positions are counted by."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def activate_past_recording(self) -> None:
        """Nothing to do: every state can be cropped."""

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: memory is taken when tokens arrive."""

    def _refuse(self, *args: Any) -> NoReturn:
        raise NotSupportedError(f"{CACHE_NAME}: {_UNREADABLE}")

    __iter__ = __getitem__ = _refuse

    def _unknown(self) -> NoReturn:
        raise AttributeError(_UNREADABLE)  # so that hasattr is False

    key_cache = value_cache = to_legacy_cache = property(_unknown)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            f"{CACHE_NAME}: a LazyCache holds what LazyLLM computed, and works only on the model "
            "that lazyllm_ext.apply patched, until lazy.remove()"
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest columns.

        Args:
            tokens_to_remove: minus the number of columns, as in transformers' caches. A positive
                number is how many stay, as transformers before 5.23 has it.

        Raises:
            TypeError: no whole number.
            ValueError: more columns than there are, or a cache that another thread is using.
        """
        try:
            given = operator.index(tokens_to_remove)
        except TypeError as error:
            raise TypeError(
                f"crop: expected a number of columns, got {reprlib.repr(tokens_to_remove)}"
            ) from error
        with self.owned():
            removed = columns_cropped(given, self.columns)
            if removed > self.columns:
                raise ValueError(f"crop: expected at most {self.columns} tokens, got {removed}")
            if removed > 0 and self.state is not None:
                self.check_usable()
                self._crop(self.state, removed)

    def _crop(self, state: LazyState, removed: int) -> None:
        left = self.columns - removed
        counts = [removed] * self.batch_size
        if self.absent is not None:
            gone = self.absent[:, left:].sum(dim=1).tolist()
            counts = [count - without for count, without in zip(counts, gone, strict=True)]
            self.absent = self.absent[:, :left]
        if self.document is not None:
            self.document = self.document[:, :left]
        crop_(state, counts)
        self.columns = left
        if self.turn is not None:
            self.turn = self.turn.cropped(state.host_length)

    def remember(self, ids: Tensor | None) -> None:
        """Keep the tokens, [B, columns], of a document that was read by itself, if they are known.

        Columns without a token stand for nothing, whatever their id is.
        """
        self.document = None if ids is None else ids.to(torch.int64, copy=True)
        if self.document is not None and self.absent is not None:
            self.document[:, : self.absent.size(1)].masked_fill_(self.absent, -1)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was; see `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times in a row, at least once."""
        if not isinstance(repeats, int) or repeats < 1:
            raise ValueError(
                f"batch_repeat_interleave: expected repeats of at least 1, got {repeats!r}"
            )
        places = torch.arange(max(self.batch_size, 0))
        self.batch_select_indices(places.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order; a sequence may be named twice.

        Args:
            indices: [any number above 0] int64, or [B] bool of which some are true.

        Raises:
            ValueError: other indices, or a cache that another thread is using.
        """
        with self.owned():
            if self.state is not None:
                self.check_usable()
                self._select(self.state, _places(indices, len(self.state.host_length)))

    def _select(self, state: LazyState, places: list[int]) -> None:
        indices = torch.tensor(places, device=state.length.device)
        self.state = select_sequences(state, indices)
        if self.absent is not None:
            self.absent = self.absent.index_select(0, indices)
        if self.document is not None:
            self.document = self.document.index_select(0, indices)
        if self.turn is not None:
            self.turn = self.turn.of_sequences(places)


def _places(indices: Any, sequences: int) -> list[int]:
    """Which sequences a tensor, or a list, names; checked."""
    given = indices.tolist() if isinstance(indices, Tensor) else indices
    kinds = {type(entry) for entry in given} if isinstance(given, list) else set()
    places: list[int] = given if kinds == {int} else []
    if kinds == {bool} and len(given) == sequences:
        places = [place for place, kept in enumerate(given) if kept]
    if not places or min(places) < 0 or max(places) >= sequences:
        raise ValueError(
            f"indices: expected some of the sequences 0 to {sequences - 1}, or a bool for each, "
            f"got {reprlib.repr(given)}"
        )
    return places
