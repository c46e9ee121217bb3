"""The cache that `generate` hands from step to step: LazyLLM's state as a transformers Cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
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


class NoLayers(list[Any]):
    """Stands for the layers of a transformers cache: whoever reads one is told why there is none.

    A loop over them finds nothing, as transformers' generate makes one on GPUs.
    """

    def __getitem__(self, layer: Any) -> NoReturn:
        raise NotSupportedError(
            f"{CACHE_NAME}.layers: a LazyCache has no layers of keys and values to read, since its "
            "layers hold different tokens; what it holds is in report()"
        )


class LazyCache(Cache):
    """Everything that one generation, or one conversation, has computed so far.

    A *column* is a place in `input_ids` and its attention mask, of all sequences alike; a token is
    a column whose mask is not 0. transformers counts columns, LazyLLM stores tokens only.

    A cache belongs to the `apply` that made it, and is used by one call at a time.
    """

    def __init__(self, plan: Plan):
        super().__init__(layers=NoLayers())
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        """Forget everything; the memory is given back."""
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

    def copy(self) -> LazyCache:
        """A cache that goes on from here by itself.

        Keys, values and waiting hidden states that are there are shared; what goes on copies them
        when it needs room.
        """
        self.check_usable()
        state = self.state
        memo = {} if state is None else {id(state): fork_state(state, self.plan.spec)}
        return copy.deepcopy(self, memo)

    # What happened to the tokens

    def report(self) -> Report:
        """What the latest turn of this conversation did, up to now.

        Of a cache that was loaded and not used since, what it holds: `unknown` names the rest.

        Raises:
            ValueError: nothing has been computed yet, or the last call was interrupted.
        """
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
        if self.running:
            raise ValueError(
                f"{CACHE_NAME}: expected a cache that is complete, got one whose last call was "
                "interrupted or is still running; reset() it or start without a cache"
            )

    def begin_generation(
        self, positions_given: bool, progress: Callable[[Progress], object] | None
    ) -> None:
        """The next forward, however short, is a prompt, and those after it are steps."""
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
            ValueError: more columns than there are.
        """
        removed = columns_cropped(tokens_to_remove, self.columns)
        if removed > self.columns:
            raise ValueError(f"crop: expected at most {self.columns} tokens, got {removed}")
        if removed == 0 or self.state is None:
            return
        self.check_usable()
        left = self.columns - removed
        counts = [removed] * self.batch_size
        if self.absent is not None:
            gone = self.absent[:, left:].sum(dim=1).tolist()
            counts = [count - without for count, without in zip(counts, gone, strict=True)]
            self.absent = self.absent[:, :left]
        if self.document is not None:
            self.document = self.document[:, :left]
        crop_(self.state, counts)
        self.columns = left
        if self.turn is not None:
            self.turn = self.turn.cropped(self.state.host_length)

    def remember(self, ids: Tensor | None) -> None:
        """Keep the tokens, [B, columns], of a document that was read by itself, if they are known.

        Columns without a token stand for nothing, whatever their id is.
        """
        self.document = None if ids is None else ids.to(torch.int64, copy=True)
        if self.document is not None and self.absent is not None:
            self.document[:, : self.absent.size(1)].masked_fill_(self.absent, -1)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence b becomes what sequence beam_idx[b] was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times in a row."""
        places = torch.arange(max(self.batch_size, 0))
        self.batch_select_indices(places.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order; a sequence may be named twice."""
        if self.state is None:
            return
        self.check_usable()
        indices = indices.to(self.state.length.device)
        if indices.dtype == torch.bool:
            indices = indices.nonzero().view(-1)
        self.state = select_sequences(self.state, indices)
        if self.absent is not None:
            self.absent = self.absent.index_select(0, indices)
        if self.document is not None:
            self.document = self.document.index_select(0, indices)
        if self.turn is not None:
            self.turn = self.turn.of_sequences(indices.tolist())
