"""Prefixes in host memory: contents of evicted slots, and checkpoints, up to a number of bytes."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from cllm.engine.cache.checkpoints import Checkpoint
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

    @property
    def n_bytes(self) -> int:
        """What counts against the limit."""
        return self.data.nbytes


Entry = Saved | Checkpoint


def new_memory(size: int) -> Bytes:
    """A buffer for a prefix.

    It has 50 % spare address space, so that a grown conversation fits into it; the system
    provides memory for it when it is written to.
    """
    return np.empty(size + size // 2, np.uint8)[:size]


class SavedPrefixes:
    """Evicts the least recently used entry, of either kind, when the bytes do not suffice.

    The buffer of a restored entry is kept for the next save, if there is room, and that of an
    evicted one is used for the save that it makes room for: filling memory that is new to the
    process takes up to twenty times as long.
    bytes: taken by the entries and by the kept buffer. evictions: of prefixes. in_use: whether
    another thread still reads a buffer, which must not be filled again then. restoring: the buffer
    that a slot is being filled from, likewise.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        self._spare: Bytes | None = None
        self.in_use: Callable[[Bytes], bool] = lambda data: False
        self.restoring: Bytes | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def newest_first(self) -> Iterator[Saved]:
        """The prefixes, the most recently used first."""
        return (entry for entry in reversed(self._entries) if isinstance(entry, Saved))

    def make_room(self, size: int, keep_spare: bool = False) -> list[Entry] | None:
        """Evict entries for `size` more bytes, for take_memory(); return the evicted ones.

        keep_spare: take_memory() is not called, and the kept buffer stays as long as it can.
        None: it never fits.
        """
        if size > self.max_bytes:
            return None
        dropped: list[Entry] = []
        spare = 0 if self._spare is None or keep_spare else self._spare.nbytes
        while self.bytes - spare + size > self.max_bytes:
            if not self._entries:
                self._forget_spare()
                break
            oldest = next(iter(self._entries))
            self.remove(oldest)
            self.evictions += isinstance(oldest, Saved)
            dropped.append(oldest)
            if isinstance(oldest, Saved) and not keep_spare and self._holds(oldest.data, size):
                self._forget_spare()
                self._spare = oldest.data
                spare = oldest.data.nbytes
                self.bytes += spare
        return dropped

    def oldest(self, among: Collection[Entry]) -> Entry:
        """The least recently used of some entries."""
        return next(entry for entry in self._entries if entry in among)

    def take_memory(self, size: int) -> Bytes:
        """A buffer for a prefix, after make_room(): the kept one if it fits."""
        spare = self._forget_spare()
        if spare is None or spare.base is None or not self._holds(spare, size):
            return new_memory(size)
        return spare.base[:size]

    @staticmethod
    def _holds(data: Bytes, size: int) -> bool:
        """Whether a buffer suits a prefix; a smaller one would hold more memory than counted."""
        return data.base is not None and data.nbytes <= size <= data.base.nbytes

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
            if self.restoring is not None and self.restoring.base is spare.base:
                return None
        return spare

    def add(self, entry: Entry) -> None:
        """Add an entry for which there is room."""
        self._entries[entry] = None
        self.bytes += entry.n_bytes

    def touch(self, entry: Entry) -> None:
        """Note that an entry was used."""
        self._entries.move_to_end(entry)

    def remove(self, entry: Entry) -> None:
        """Drop an entry."""
        del self._entries[entry]
        self.bytes -= entry.n_bytes
