"""Copies of what slots and host memory hold, for the disk, made while no request runs."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from cllm.engine.cache.prefix_cache import WORTH_SAVING, PrefixCache, Slot
from cllm.engine.cache.saved_prefixes import Saved
from cllm.engine.llama import Bytes, Context
from cllm.engine.sharing import Scope

Worth = Callable[["array[int]", Scope, bool], bool]
"""Whether a prefix of a scope should be written; the last: whether a part of it is useless."""


class IdleCopies:
    """Finds prefixes that the disk lacks, each once a round. The engine thread, or after its end.

    whole: see Saved.
    """

    def __init__(self, context: Context, cache: PrefixCache, whole: bool) -> None:
        self._context = context
        self._cache = cache
        self._whole = whole
        self._seen: set[int] = set()

    def begin(self) -> None:
        """Begin a round."""
        self._seen.clear()

    def find(self, worth: Worth, most: int) -> tuple[Saved | Slot, int] | None:
        """The most recent prefix that should be written, and its bytes, at most `most`.

        One that host memory has no room for is left out: it could not be read again. None: there
        is none left, or a slot is busy.
        """
        if self._cache.busy or self._context.copies_pending:
            return None
        most = min(most, self._cache.saved.max_bytes)
        slots = [slot for slot in self._cache.slots if slot.length >= WORTH_SAVING]
        for slot in sorted(slots, key=lambda slot: -slot.last_used):
            if self._saw(slot) or not worth(slot.tokens[: slot.length], slot.scope, self._whole):
                continue
            size = self._context.state_size(slot.id)
            if size <= most:
                return slot, size
        for saved in self._cache.saved.newest_first():
            if self._saw(saved) or not worth(saved.tokens, saved.scope, saved.whole):
                continue
            if saved.data.nbytes <= most:
                return saved, saved.data.nbytes
        return None

    def _saw(self, holder: object) -> bool:
        """Whether it was considered in this round; it was now."""
        known = id(holder) in self._seen  # a reference would keep its memory
        self._seen.add(id(holder))
        return known

    def copy(self, slot: Slot, data: Bytes) -> Saved | None:
        """Copy the state of a slot into `data`; None if it is busy or holds something else now."""
        same = slot.length and self._context.state_size(slot.id) == data.nbytes
        if not same or self._cache.busy or self._context.copies_pending:
            return None
        if self._context.save(slot.id, data) is None:
            return None
        return Saved(slot.tokens[: slot.length], data, self._whole, slot.scope)
