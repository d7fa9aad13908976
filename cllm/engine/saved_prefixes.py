"""Prefixes in host memory: what slots held when they were given up, up to a number of bytes."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass

from cllm.engine.llama import Bytes


@dataclass(slots=True, eq=False)
class Saved:
    """What llama.cpp needs to put `tokens` back into a slot.

    whole: whether a part of it is of no use: of windowed and recurrent memories only the end is
    kept.
    """

    tokens: array[int]
    data: Bytes
    whole: bool

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.tokens)


class SavedPrefixes:
    """The least recently used goes first when the bytes do not suffice."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self._entries: OrderedDict[Saved, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def make_room(self, size: int) -> list[Saved] | None:
        """Drop what must go for `size` more bytes; return it. None: it never fits."""
        if size > self.max_bytes:
            return None
        dropped = []
        while self.bytes + size > self.max_bytes:
            oldest = next(iter(self._entries))
            self.remove(oldest)
            self.evictions += 1
            dropped.append(oldest)
        return dropped

    def add(self, saved: Saved) -> None:
        """Keep an entry for which there is room."""
        self._entries[saved] = None
        self.bytes += saved.data.nbytes

    def touch(self, saved: Saved) -> None:
        """Note that an entry was of use."""
        self._entries.move_to_end(saved)

    def remove(self, saved: Saved) -> None:
        """Drop an entry."""
        del self._entries[saved]
        self.bytes -= saved.data.nbytes
