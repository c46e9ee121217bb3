"""What is exported: a decoder together with the state of a conversation, as a TorchScript class.

No postponed annotations here: TorchScript reads them. Names of methods and attributes stay: files
that were written before have them, and programs in other languages call them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lazyllm_ext import state as bookkeeping
from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.state import LazyState

from .step import tensors_of


class Program(nn.Module):
    """Token ids in, logits out; the conversation so far is inside.

    The state belongs to the module, since Python hands a scripted function copies of its arguments'
    lists. `copy.copy(program)` (`module.copy()` in C++) and `reset` give a second conversation that
    shares the weights. `torch.jit.save` writes the conversation, too: `reset` before, for a file
    without.

    One thread uses a program at a time. All calls of a conversation are inside of inference mode or
    all outside; after one that failed, it is `reset`. What is not so is refused.

    Args:
        decoder: see `LazyDecoder.from_model(…, export=True)`.
        vocab_size: number of token ids.
        max_tokens: longest prompt with all that came before it; 0 for no limit.
        eos_token_ids: tokens that end an answer; for whoever generates.
        columns: longest context of a compiled step; 0 without one.
        batch: sequences of the conversation, until `reset` says otherwise.
    """

    state: LazyState
    eos_token_ids: list[int]

    def __init__(
        self,
        decoder: LazyDecoder,
        vocab_size: int,
        max_tokens: int = 0,
        eos_token_ids: Sequence[int] = (),
        columns: int = 0,
        batch: int = 1,
    ):
        super().__init__()
        self.decoder = decoder
        self.vocab_size, self.max_tokens = vocab_size, max_tokens
        self.eos_token_ids = list(eos_token_ids)
        self.columns = columns
        self.max_revive = max((b.max_revive for b in decoder.boundaries), default=0)
        self.running = False  # until a call is done: one that failed leaves the state useless
        self.state = self._new_state(batch)

    def _new_state(self, batch: int) -> LazyState:
        state = self.decoder.new_state(batch, self.decoder.embed.weight)
        if self.columns > 0:  # so that tables outgrow compiled steps with the context, not before
            bookkeeping.widen_tables_(state, self.columns)
        return state

    @torch.jit.export
    def reset(self, batch: int = 1) -> None:
        """Forget everything, and make room for `batch` sequences."""
        if batch < 1:
            raise ValueError(f"reset: batch: expected at least 1, got {batch}")
        self.state = self._new_state(batch)
        self.running = False

    def _check_usable(self) -> None:
        """Raises ValueError where the state is not whole, or cannot be changed by this call."""
        if self.running:
            raise ValueError(
                "program: expected one whose last call has ended, got one whose last call failed "
                "or is still running; reset it"
            )
        made = torch.empty_like(self.state.length)  # of constants only, it would be a constant
        if self.state.length.is_inference() != made.is_inference():
            if max(self.state.host_length) == 0:
                self.state = self._new_state(len(self.state.host_length))
            else:
                raise ValueError(
                    "program: expected calls of one conversation all inside or all outside of "
                    "inference mode, got both; reset it to change"
                )

    def forward(self, ids: Tensor, counts: list[int], logits_to_keep: int = 1) -> Tensor:
        """Compute the next tokens of every sequence: a prompt, one token, or the next turn.

        Args:
            ids: [rows] int64, sequence after sequence, no padding.
            counts: how many of them belong to each sequence; 0 is allowed.
            logits_to_keep: logits are computed for so many last new tokens of each sequence, at
                least 1.

        Returns:
            [Σ_b min(logits_to_keep, counts[b]), vocab] logits, sequence after sequence.

        Raises:
            ValueError: before anything is computed, for arguments that do not fit.
        """
        positions = self._positions(ids, counts, logits_to_keep)
        self._check_usable()
        self.running = True
        with torch.no_grad():
            hidden = self.decoder.embed_tokens(ids)
            logits = self.decoder.step(hidden, positions, counts, self.state, logits_to_keep)
        self.running = False
        return logits

    def _positions(self, ids: Tensor, counts: list[int], logits_to_keep: int) -> Tensor:
        """Check the arguments; each token's index in its own sequence, [rows] int64."""
        lengths = self.state.host_length
        if ids.dim() != 1 or ids.dtype != torch.int64:
            raise ValueError(f"ids: expected [rows] int64, got {ids.dim()} dimensions, {ids.dtype}")
        if len(counts) != len(lengths):
            raise ValueError(f"counts: expected {len(lengths)} sequences, got {len(counts)}")
        if min(counts) < 0 or sum(counts) != ids.size(0) or ids.size(0) == 0:
            raise ValueError(
                f"counts: expected numbers that sum to the {ids.size(0)} ids (one or more), "
                f"got {counts}"
            )
        if logits_to_keep < 1:
            raise ValueError(f"logits_to_keep: expected at least 1, got {logits_to_keep}")
        first, last = int(ids.min().item()), int(ids.max().item())
        if first < 0 or last >= self.vocab_size:
            raise ValueError(f"ids: expected 0 to {self.vocab_size - 1}, got {first} to {last}")
        spans: list[Tensor] = []
        for sequence, count in enumerate(counts):
            length = lengths[sequence] + count
            if count > 1 and self.max_tokens > 0 and length > self.max_tokens:
                raise ValueError(f"ids: expected at most {self.max_tokens} tokens, got {length}")
            spans.append(torch.arange(lengths[sequence], length, device=ids.device))
        return torch.cat(spans)

    @torch.jit.export
    def crop(self, counts: list[int]) -> None:
        """Remove the newest counts[b] tokens of each sequence."""
        self._check_usable()
        bookkeeping.crop_(self.state, counts)

    @torch.jit.export
    def lengths(self) -> list[int]:
        """Tokens of each sequence so far."""
        return self.state.host_length

    @torch.jit.export
    def computed_per_stage(self) -> list[list[int]]:
        """For each stage, the tokens of each sequence whose keys and values exist."""
        return bookkeeping.computed_per_stage(self.state)

    @torch.jit.export
    def waiting_per_boundary(self) -> list[list[int]]:
        """For each boundary, the tokens of each sequence that wait in the Aux Cache."""
        return bookkeeping.waiting_per_boundary(self.state)

    @torch.jit.export
    def revived(self) -> list[int]:
        """For each boundary, the tokens revived so far, all sequences together."""
        return bookkeeping.revived(self.state)

    @torch.jit.export
    def nbytes(self) -> list[int]:
        """Bytes of keys and values, of waiting hidden states, and of tables."""
        return [
            bookkeeping.kv_nbytes(self.state),
            bookkeeping.aux_nbytes(self.state),
            bookkeeping.table_nbytes(self.state),
        ]

    @torch.jit.export
    def fits(self) -> bool:
        """Whether the next token is in the middle of what the compiled step was made for."""
        longest = max(self.state.host_length)
        return 0 < longest < self.columns and self.state.position[0].size(1) <= self.columns

    @torch.jit.export
    def begin_step(self) -> list[list[Tensor]]:
        """What a compiled step works on, in place: the state's tensors, with room for the step.

        The step is counted as done, so it must follow. Only where `fits` says so.
        """
        self._check_usable()
        # Room for two: torch.export takes a size of 1 for a constant.
        bookkeeping.reserve_steps_(self.state, self.decoder.spec, 2, self.max_revive)
        bookkeeping.count_step_(self.state, self.max_revive)
        return tensors_of(self.state)

    @torch.jit.export
    def warm_up(self) -> None:
        """Forget everything, and have what the first calls prepare prepared."""
        device = self.decoder.embed.weight.device
        self.reset(1)
        self.forward(torch.zeros([4], dtype=torch.int64, device=device), [4], 1)
        self.forward(torch.zeros([1], dtype=torch.int64, device=device), [1], 1)
        self.reset(1)
