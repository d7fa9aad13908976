"""Performs what the prefix cache decides: cuts, copies, saves and restores in the memory."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable

from cllm.engine.cache.checkpoints import Checkpoint, Checkpoints
from cllm.engine.cache.disk_cache import DiskCache
from cllm.engine.cache.prefix_cache import WORTH_SAVING, Holder, PrefixCache, Slot, Start
from cllm.engine.cache.radix import common_prefix
from cllm.engine.cache.saved_prefixes import Saved
from cllm.engine.cache.saves_aside import SavesAside
from cllm.engine.errors import EngineError, InvalidRequest
from cllm.engine.llama import Bytes, Context
from cllm.engine.sharing import COMMON, Scope
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")


class Placer:
    """Gives sequences slots with as many of their tokens as are held anywhere. Engine thread.

    most_busy: slots in use at once; the others keep their tokens.
    window: tokens that windowed attention looks back; 0: attention is not windowed.
    checkpoints: of recurrent memories, which keep only the state at the end; None: the memory can
    roll back.
    disk: where else prefixes are kept.
    """

    def __init__(
        self,
        context: Context,
        stats: EngineStats,
        *,
        n_slots: int,
        most_busy: int,
        copy_gain: int,
        split_cache: bool,
        max_saved_bytes: int,
        window: int,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.disk: DiskCache | None = None
        self._context = context
        self._stats = stats
        self._window = window
        self._split_cache = split_cache
        self.supports_rollback = checkpoints is None
        self.attends_to_all = self.supports_rollback and not window
        self._whole = not self.attends_to_all
        self._save_failed = False
        self.cache = PrefixCache(
            n_slots,
            copy_gain,
            split_cache,
            max_saved_bytes,
            self._usable,
            checkpoints,
            most_busy,
        )
        possible = split_cache and self.attends_to_all and not context.on_device
        self.aside = SavesAside(possible, self.cache.worth_saving, self._save)
        stats.cache_ram_limit = max_saved_bytes

    def place(
        self,
        tokens: array[int],
        wanted: int | None = None,
        fresh: bool = False,
        scope: Scope = COMMON,
        may_save: bool = True,
        aside: int = 0,
    ) -> Slot | None:
        """Give tokens the slot where the most are cached; None: not before the next decode.

        wanted: the idle slot to use instead. fresh: reuse nothing. scope: reuse only from it.
        may_save: False: None if another prefix would have to be saved first. aside: above 0: that
        one, and others up to this number, are saved by `aside`, where that is possible.
        """
        cache = self.cache
        slot, start = cache.choose(tokens, wanted, fresh, scope)
        if self._must_wait(start):
            return None
        kept = start.reuse if start.source is None else 0
        lost = cache.worth_saving(slot, kept)
        if lost and aside and self.aside.want(slot, cache.slots, aside):
            return None
        if lost and not may_save:
            return None
        self._take(start)
        if not lost and isinstance(start.source, Saved):  # which may have held the same
            lost = cache.worth_saving(slot, kept)
        if lost and not self.aside.tried(slot):
            self._save(slot)
        cache.occupy(slot, tokens, slot.length, scope)
        try:
            self._begin(slot, start)
            if not fresh:
                self._mark(slot, start.branch)
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
            self._mark(slot, start.branch)
        return slot.leader is None

    def _must_wait(self, start: Start) -> bool:
        """llama.cpp copies slots at the next decode; until then their data must stay."""
        return isinstance(start.source, Saved) and self._context.copies_pending

    def _take(self, start: Start) -> None:
        """Remove a saved prefix that moves into a slot; keep one of which much is not used."""
        saved = start.source
        self.cache.saved.restoring = saved.data if isinstance(saved, Saved) else None
        for used in (saved, start.checkpoint):
            if isinstance(used, Checkpoint):
                self.cache.saved.touch(used)
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
            self.cache.saved.restoring = None
            self.cache.saved.keep_memory(source)
            reuse = min(reuse, slot.length)
            self._stats.restored_tokens += reuse
        elif isinstance(source, Checkpoint):
            slot.source = "memory"
            self._context.remove(slot.id)
            slot.length = 0
            self._return_to(slot, source)
        self._cut(slot, reuse, start.checkpoint)
        leader = slot.leader = start.leader
        slot.promised = start.promised
        if leader is not None and not self.supports_rollback:
            leader.marks = sorted({*leader.marks, slot.promised})

    def _mark(self, slot: Slot, branch: int) -> None:
        """Choose where the slot's state is kept while its prompt is read."""
        if self.supports_rollback or slot.leader is not None or not self.cache.saved.max_bytes:
            return
        marks = self.cache.checkpoints.marks(slot.tokens, slot.length, branch, slot.scope)
        slot.marks = sorted({*slot.marks, *marks})
        self.reached(slot)

    def reached(self, slot: Slot) -> None:
        """If a slot's length is one of its marks, keep its state as a checkpoint."""
        cache = self.cache
        if slot.length not in slot.marks or not cache.saved.max_bytes or self._window_pending:
            return
        tokens = slot.tokens[: slot.length]
        known = cache.checkpoints.within(tokens, slot.scope)
        if known and known[0].length == slot.length:
            cache.saved.touch(known[0])
            return
        size = self._context.checkpoint_size(slot.id)
        if not cache.make_room(size + tokens.itemsize * len(tokens), keep_spare=True):
            return
        try:
            data = self._context.checkpoint(slot.id)
        except MemoryError:
            self._warn(size)
            return
        if data is not None:
            cache.keep(Checkpoint(tokens, data, slot.scope))
            self._stats.saved_checkpoints += 1

    def _usable(self, holder: Holder, n: int) -> bool:
        """Whether the memory can be cut to a holder's first n tokens, without a checkpoint."""
        if isinstance(holder, Saved):
            return n == holder.length or not holder.whole
        if not self.supports_rollback:
            return n == holder.length
        return (n == holder.length and not self._window) or self._can_follow(holder, n)

    def _can_follow(self, slot: Slot, n: int) -> bool:
        """Whether the memory has all that a token behind the first n looks at."""
        first = self._context.first_position(slot.id)
        return first == 0 or (self._window > 0 and first <= n - self._window + 1)

    def _cut(self, slot: Slot, n: int, checkpoint: Checkpoint | None = None) -> None:
        """Keep a slot's first n tokens; nothing if the memory cannot keep a part.

        checkpoint: the state after these tokens, if the memory needs it.
        """
        if n == slot.length:
            return
        if n and checkpoint is not None and not self._window_pending:
            self._return_to(slot, checkpoint)
        elif n and self._usable(slot, n) and self._context.remove(slot.id, n):
            slot.length = n
        else:
            self._context.remove(slot.id)
            slot.length = 0

    @property
    def _window_pending(self) -> bool:
        """Whether the next decode may overwrite the window, which checkpoints hold too."""
        return self._window > 0 and self._context.copies_pending

    def _return_to(self, slot: Slot, checkpoint: Checkpoint) -> None:
        """Let a slot hold what a checkpoint says; nothing if llama.cpp cannot."""
        if self._context.return_to(slot.id, checkpoint.data, checkpoint.length):
            slot.length = checkpoint.length
            self._stats.restored_checkpoints += 1
        else:
            self._context.remove(slot.id)
            slot.length = 0

    def _restore(self, slot: Slot, saved: Saved) -> int:
        """Bring a saved prefix into a slot; return its tokens, 0 if there was no room for it."""
        if not self._fill(slot, saved.data):
            # It was not for want of room if nothing else takes room.
            alone = self._split_cache or self.cache.busy == 1
            if self.disk is not None and saved.origin == "disk" and alone:
                self.disk.reject(saved)
            return 0
        self._stats.restored_prefixes += 1
        return saved.length

    def _fill(self, slot: Slot, data: Bytes) -> bool:
        """Replace what a busy slot holds; False: there was no room, and it holds nothing."""
        self._context.remove(slot.id)
        while not self._context.restore(slot.id, data):
            idle = self.cache.oldest_idle()
            if idle is None:
                self._context.remove(slot.id)
                return False
            self.give_up(idle)
        return True

    def _save(self, slot: Slot) -> None:
        size = self._context.state_size(slot.id)
        if not self.cache.make_room(size):
            return
        saved = self.cache.saved
        try:
            data = self._context.save(slot.id, saved.take_memory(size))
        except MemoryError:
            self._warn(size)
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

    def _warn(self, size: int) -> None:
        if not self._save_failed:
            self._save_failed = True
            _log.warning(
                "not enough memory to save a prefix of %.1f MiB; it will be computed again; "
                "lower cache_ram (logged once)",
                size / 2**20,
            )

    def keep(self, saved: Saved) -> None:
        """Put a prefix that was read from disk into host memory, if there is room."""
        if self.cache.make_room(saved.data.nbytes, keep_spare=True):
            self.cache.save(saved)

    def can_pause(self, slot: Slot) -> bool:
        """Whether the sequence in a busy slot can leave it and continue later at little cost."""
        if self._context.copies_pending or slot.leader is not None or slot.moved_from is not None:
            return False
        if slot.length < WORTH_SAVING:
            return True
        most = self.cache.saved.max_bytes
        if not most:
            return False
        return not self.cache.worth_saving(slot) or self._context.state_size(slot.id) <= most

    def shift(self, slot: Slot, keep: int, discard: int) -> None:
        """Discard tokens of a busy slot after the first `keep`; those after them move down.

        If nothing of it can be kept, the slot is empty afterwards.
        """
        detached = not self._shares_beyond(slot, keep + discard) or self._detach(slot)
        moved_from = keep if slot.moved_from is None else min(keep, slot.moved_from)
        self.cache.note_shift(slot, moved_from)
        if not detached:
            self.forget(slot)
            return
        self._context.shift(slot.id, keep, discard)
        slot.length -= discard

    def _shares_beyond(self, slot: Slot, n: int) -> bool:
        """Whether another slot may share cells with this one after its first n tokens."""
        if self._split_cache:
            return False
        own = slot.tokens[: slot.length]
        others = (other for other in self.cache.slots if other is not slot and other.length > n)
        return any(common_prefix(own, other.tokens[: other.length]) > n for other in others)

    def _detach(self, slot: Slot) -> bool:
        """Give a slot cells of its own; False: there is no room for them."""
        try:
            data = self._context.save(slot.id)
        except MemoryError:
            return False
        return data is not None and self._fill(slot, data)

    def release(self, slot: Slot) -> None:
        """Take a slot back from its request; what others may reuse stays."""
        if slot.moved_from is not None:
            self._cut(slot, min(slot.length, slot.moved_from))
        self.cache.release(slot)

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
        taken = self._fill(slot, data)
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
            kept = self.supports_rollback and self._context.remove(slot.id, slot.length)
            if not (kept and self._can_follow(slot, slot.length)):
                self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Free a slot's part of the cache, busy or not."""
        self._context.remove(slot.id)
        slot.length = 0
