"""Prefixes in host memory: the contents of evicted slots, up to a number of bytes."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cllm.engine.llama import Bytes
from cllm.engine.sharing import COMMON, Scope


@dataclass(slots=True, eq=False)
class Saved:
    """What llama.cpp needs to restore `tokens` into a slot.

    whole: whether a part of it is useless: of windowed and recurrent memories only the end is
    kept. scope: of the requests that may reuse it. origin: "memory", or "disk" if it was read
    from there.
    """

    tokens: array[int]
    data: Bytes
    whole: bool
    scope: Scope = COMMON
    origin: str = "memory"

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.tokens)


def new_memory(size: int) -> Bytes:
    """A buffer for a prefix.

    It has 50 % spare address space, so that a grown conversation fits into it; the system
    provides memory for it when it is written to.
    """
    return np.empty(size + size // 2, np.uint8)[:size]


class SavedPrefixes:
    """Evicts the least recently used entry when the bytes do not suffice.

    The buffer of a restored entry is kept for the next save, if there is room: filling memory
    that is new to the process takes up to twenty times as long.
    bytes: taken by the entries and by the kept buffer. in_use: whether another thread still reads
    a buffer, which must not be filled again then.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[Saved, None] = OrderedDict()
        self._spare: Bytes | None = None
        self.in_use: Callable[[Bytes], bool] = lambda data: False

    def __len__(self) -> int:
        return len(self._entries)

    def newest_first(self) -> Iterator[Saved]:
        """The entries, the most recently used first."""
        return reversed(self._entries)

    def make_room(self, size: int) -> list[Saved] | None:
        """Evict entries for `size` more bytes, for take_memory(); return the evicted ones.

        None: it never fits.
        """
        if size > self.max_bytes:
            return None
        dropped = []
        spare = 0 if self._spare is None else self._spare.nbytes
        while self.bytes - spare + size > self.max_bytes:
            oldest = next(iter(self._entries))
            self.remove(oldest)
            self.evictions += 1
            dropped.append(oldest)
        return dropped

    def take_memory(self, size: int) -> Bytes:
        """A buffer for a prefix, after make_room(): the kept one if it fits."""
        spare = self._forget_spare()
        # Not for a smaller prefix, which would hold more memory than counted.
        if spare is None or spare.base is None or not spare.nbytes <= size <= spare.base.nbytes:
            return new_memory(size)
        return spare.base[:size]

    def keep_memory(self, saved: Saved) -> None:
        """Keep the buffer of a restored entry for the next save, unless the entry is still here."""
        if saved in self._entries:
            return
        self._forget_spare()
        if self.bytes + saved.data.nbytes <= self.max_bytes:
            self._spare = saved.data
            self.bytes += saved.data.nbytes

    def _forget_spare(self) -> Bytes | None:
        spare, self._spare = self._spare, None
        if spare is not None:
            self.bytes -= spare.nbytes
            if self.in_use(spare):
                return None
        return spare

    def add(self, saved: Saved) -> None:
        """Add an entry for which there is room."""
        self._entries[saved] = None
        self.bytes += saved.data.nbytes

    def touch(self, saved: Saved) -> None:
        """Note that an entry was used."""
        self._entries.move_to_end(saved)

    def remove(self, saved: Saved) -> None:
        """Drop an entry."""
        del self._entries[saved]
        self.bytes -= saved.data.nbytes
