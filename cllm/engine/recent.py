"""Values that are likely to be asked for again, bounded by the memory they take."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_ENTRY = 300  # bytes in addition to those that a key and a value have


class Recent(Generic[K, V]):
    """For any thread.

    Values are in two generations: when the young one is full, it replaces the old one. A dict's
    methods are atomic; a count that two threads change at once may miss a value, until the next
    generation begins.
    """

    __slots__ = ("_bytes", "_most", "_old", "_young")

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes // 2
        self._young: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}
        self._bytes = 0  # of the young ones

    def get(self, key: K) -> V | None:
        """The value, if it is kept."""
        found = self._young.get(key)
        if found is not None:
            return found[0]
        found = self._old.get(key)
        if found is None:
            return None
        self.put(key, *found)
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value; with its key it takes `size` bytes. An eighth of all is too much."""
        if size > self._most // 4:
            return
        if self._bytes + size + _ENTRY > self._most:
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[key] = value, size
        self._bytes += size + _ENTRY

    @property
    def kept(self) -> dict[K, tuple[V, int]]:
        """What is kept, with its size in bytes."""
        return {**self._old, **self._young}
