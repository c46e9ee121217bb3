"""Prefix caches: those of finished conversations, for the turns that go on from them."""

from __future__ import annotations

from dataclasses import dataclass

from lazyllm_ext.hf.cache.cache import LazyCache


@dataclass(frozen=True)
class _Entry:
    tokens: list[int]  # what the cache holds
    prompt_tokens: int  # how many of them were read as a prompt, which chose the tokens to drop
    cache: LazyCache
    nbytes: int


class PrefixCaches:
    """Caches by the tokens that they hold; past a budget of bytes the least recently used goes.

    A cache is in one place only: `take` hands it over, and `put` brings it back when it has grown.

    Args:
        budget: bytes of keys, values and waiting hidden states; 0 to keep nothing.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self._entries: list[_Entry] = []  # the most recently used one last

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(entry.nbytes for entry in self._entries)

    def take(self, prompt: list[int]) -> LazyCache | None:
        """Take out the cache that holds most of the beginning of a prompt.

        At least one token of the prompt is new. A cache is taken only if the prompt begins with
        all that the cache read as a prompt, since its last tokens chose what was dropped. Where the
        answer after it reads otherwise (edited, or split into other tokens), its rest is cropped.
        """
        kept = [_usable(entry, prompt) for entry in self._entries]
        longest = max(kept, default=0)
        if longest == 0:
            return None
        entry = self._entries.pop(len(kept) - 1 - kept[::-1].index(longest))  # the latest of equals
        entry.cache.crop(longest - len(entry.tokens))
        return entry.cache

    def put(self, tokens: list[int], prompt_tokens: int, cache: LazyCache) -> None:
        """Keep a cache that holds these tokens, the first `prompt_tokens` of them as a prompt."""
        entry = _Entry(tokens, prompt_tokens, cache, cache.nbytes())
        if entry.nbytes > self.budget:
            return
        self._entries = [other for other in self._entries if other.tokens != tokens]
        self._entries.append(entry)
        while self.nbytes > self.budget:
            del self._entries[0]


def _usable(entry: _Entry, prompt: list[int]) -> int:
    """How many tokens of a cache a prompt can go on from."""
    most = min(len(entry.tokens), len(prompt) - 1)
    pairs = zip(entry.tokens[:most], prompt, strict=False)
    same = next((place for place, (ours, asked) in enumerate(pairs) if ours != asked), most)
    return same if same >= entry.prompt_tokens else 0
