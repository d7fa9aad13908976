"""Performs what the prefix cache decides: cuts, copies, saves and restores in the memory."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable

from cllm.engine.cache.disk_cache import DiskCache
from cllm.engine.cache.prefix_cache import WORTH_SAVING, Holder, PrefixCache, Slot, Start
from cllm.engine.cache.saved_prefixes import Saved
from cllm.engine.errors import EngineError, InvalidRequest
from cllm.engine.llama import Bytes, Context
from cllm.engine.sharing import COMMON, Scope
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")


class Placer:
    """Gives sequences slots with as many of their tokens as are held anywhere. Engine thread.

    window: tokens that windowed attention looks back; 0: attention is not windowed.
    supports_rollback: False for recurrent memories, which keep only the state at the end.
    disk: where else prefixes are kept.
    """

    def __init__(
        self,
        context: Context,
        stats: EngineStats,
        *,
        n_slots: int,
        copy_gain: int,
        split_cache: bool,
        max_saved_bytes: int,
        window: int,
        supports_rollback: bool,
    ) -> None:
        self.disk: DiskCache | None = None
        self._context = context
        self._stats = stats
        self._window = window
        self._whole = window > 0 or not supports_rollback
        self.supports_rollback = supports_rollback
        self._save_failed = False
        self.cache = PrefixCache(n_slots, copy_gain, split_cache, max_saved_bytes, self._usable)
        stats.cache_ram_limit = max_saved_bytes

    def place(
        self,
        tokens: array[int],
        wanted: int | None = None,
        fresh: bool = False,
        scope: Scope = COMMON,
    ) -> Slot | None:
        """Give tokens the slot where the most are cached; None: not before the next decode.

        wanted: the idle slot to use instead. fresh: reuse nothing. scope: reuse only from it.
        """
        cache = self.cache
        slot, start = cache.choose(tokens, wanted, fresh, scope)
        if self._must_wait(start):
            return None
        self._take(start)
        kept = start.reuse if start.source is None else 0
        if cache.worth_saving(slot, kept):
            self._save(slot)
        cache.occupy(slot, tokens, slot.length, scope)
        try:
            self._begin(slot, start)
        except BaseException:
            slot.length = 0
            cache.release(slot)
            self._context.remove(slot.id)
            raise
        return slot

    def catch_up(self, slot: Slot) -> bool:
        """Whether a slot waits for its leader no longer; then it holds the shared prefix."""
        leader = slot.leader
        if leader is not None:
            if leader.busy and leader.length < slot.promised:
                return False
            start = self.cache.start(slot)
            if self._must_wait(start):
                slot.promised = 0  # choose again, whatever the leader does
                return False
            slot.leader = None
            self._take(start)
            self._begin(slot, start)
        return slot.leader is None

    def _must_wait(self, start: Start) -> bool:
        """llama.cpp copies slots at the next decode; until then their data must stay."""
        return isinstance(start.source, Saved) and self._context.copies_pending

    def _take(self, start: Start) -> None:
        """Remove a saved prefix that moves into a slot; keep one of which much is not used."""
        saved = start.source
        if isinstance(saved, Saved):
            if saved.length - start.reuse < WORTH_SAVING and not saved.whole:
                self.cache.drop(saved)
                if self.disk is not None:
                    self.disk.writer.withdraw(saved)
            else:
                self.cache.saved.touch(saved)

    def _begin(self, slot: Slot, start: Start) -> None:
        source, reuse = start.source, start.reuse
        slot.source = "slot"
        if isinstance(source, Slot):
            slot.source = "running" if source.busy else "copy"
            self._context.remove(slot.id)
            self._context.copy(source.id, slot.id)
            slot.length = source.length
        elif isinstance(source, Saved):
            slot.source = source.origin
            slot.length = self._restore(slot, source)
            self.cache.saved.keep_memory(source)
            reuse = min(reuse, slot.length)
            self._stats.restored_tokens += reuse
        self._cut(slot, reuse)
        if self.supports_rollback:
            slot.leader, slot.promised = start.leader, start.promised

    def _usable(self, holder: Holder, n: int) -> bool:
        """Whether the memory can be cut to a holder's first n tokens."""
        if n == holder.length:
            return True
        if isinstance(holder, Saved):
            return not holder.whole
        first = self._context.first_position(holder.id)
        return self.supports_rollback and (
            first == 0 or (self._window > 0 and first <= n - self._window)
        )

    def _cut(self, slot: Slot, n: int) -> None:
        """Keep a slot's first n tokens; nothing if the memory cannot keep a part."""
        if n == slot.length:
            return
        if n and self._usable(slot, n) and self._context.remove(slot.id, n):
            slot.length = n
        else:
            self._context.remove(slot.id)
            slot.length = 0

    def _restore(self, slot: Slot, saved: Saved) -> int:
        """Bring a saved prefix into a slot; return its tokens, 0 if there was no room for it."""
        self._context.remove(slot.id)
        while not self._context.restore(slot.id, saved.data):
            idle = self.cache.oldest_idle()
            if idle is None:
                self._context.remove(slot.id)
                if self.disk is not None and saved.origin == "disk":
                    self.disk.reject(saved)
                return 0
            self.give_up(idle)
        self._stats.restored_prefixes += 1
        return saved.length

    def _save(self, slot: Slot) -> None:
        size = self._context.state_size(slot.id)
        if not self.cache.make_room(size):
            return
        saved = self.cache.saved
        try:
            data = self._context.save(slot.id, saved.take_memory(size))
        except MemoryError:
            if not self._save_failed:
                self._save_failed = True
                _log.warning(
                    "not enough memory to save a prefix of %.1f MiB; it will be computed again; "
                    "lower cache_ram (logged once)",
                    size / 2**20,
                )
            return
        if data is None:
            _log.warning("llama.cpp could not save slot %d; its cached tokens are dropped", slot.id)
            return
        kept = Saved(slot.tokens[: slot.length], data, self._whole, slot.scope)
        self.cache.save(kept)
        if self.disk is not None:
            self.disk.writer.offer(kept)
        self._stats.saved_prefixes += 1
        self._stats.evicted_prefixes = saved.evictions

    def keep(self, saved: Saved) -> None:
        """Put a prefix that was read from disk into host memory, if there is room."""
        if self.cache.make_room(saved.data.nbytes):
            self.cache.save(saved)

    def can_pause(self, slot: Slot) -> bool:
        """Whether the sequence in a busy slot can leave it and continue later at little cost."""
        if self._context.copies_pending or slot.leader is not None:
            return False
        if slot.length < WORTH_SAVING:
            return True
        most = self.cache.saved.max_bytes
        if not most:
            return False
        return not self.cache.worth_saving(slot) or self._context.state_size(slot.id) <= most

    def snapshot(self, slot: Slot, owner: str = "") -> tuple[array[int], Bytes]:
        """What an idle slot holds, for a file.

        Raises InvalidRequest if it is empty, which it is to all but the owner of its tokens.
        """
        if not slot.length or slot.scope.owner != owner:
            raise InvalidRequest("id_slot", slot.id, "a slot that holds tokens")
        try:
            data = self._context.save(slot.id)
        except MemoryError:
            size = self._context.state_size(slot.id) / 2**20
            raise EngineError(
                f"not enough memory to save slot {slot.id} ({size:.1f} MiB)"
            ) from None
        if data is None:
            raise EngineError(f"llama.cpp could not save slot {slot.id}")
        return slot.tokens[: slot.length], data

    def load(self, slot: Slot, tokens: array[int], data: Bytes, scope: Scope = COMMON) -> bool:
        """Put the content of a file into an idle slot; False if llama.cpp rejects it."""
        self.give_up(slot)
        taken = self._context.restore(slot.id, data)
        if not taken:
            self._context.remove(slot.id)
        self.cache.fill(slot, tokens if taken else array("i"), scope)
        return taken

    def erase(self, slot: Slot, owner: str = "") -> int:
        """Forget what an idle slot holds of this owner; return its number of tokens."""
        if slot.scope.owner != owner:
            return 0
        erased = slot.length
        self.forget(slot)
        self.cache.fill(slot, array("i"))
        return erased

    def give_up(self, slot: Slot) -> None:
        """Free an idle slot's cells in the KV cache; save it first if that is worthwhile."""
        if self.cache.worth_saving(slot) and not self._context.copies_pending:
            self._save(slot)
        self.forget(slot)

    def undo(self, slots: Iterable[Slot]) -> None:
        """Cut slots to what they held before an incomplete decode.

        Such a decode may have changed the states of all slots of a recurrent memory: all of it is
        forgotten, and running sequences are computed again.
        """
        for slot in slots if self.supports_rollback else self.cache.slots:
            if not (self.supports_rollback and self._context.remove(slot.id, slot.length)):
                self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Free a slot's part of the cache, busy or not."""
        self._context.remove(slot.id)
        slot.length = 0
