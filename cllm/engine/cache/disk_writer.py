"""Writes prefixes to disk on a thread of its own: queued ones, those of idle slots, the last ones.

The engine thread never waits for a file. It leaves prefixes that are in host memory already in a
queue of bounded size (`offer`), and copies idle slots while it has nothing else to do (`serve`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import TypeVar

from cllm.engine.cache import prefix_file
from cllm.engine.cache.disk_index import KIND, DiskIndex, Entry, digest_of
from cllm.engine.cache.idle_copies import IdleCopies
from cllm.engine.cache.prefix_cache import Slot, adds_little, is_worth_saving
from cllm.engine.cache.prefix_file import Head, StoppedError
from cllm.engine.cache.radix import common_prefix
from cllm.engine.cache.saved_prefixes import Saved, new_memory
from cllm.engine.llama import Bytes
from cllm.engine.sharing import Scope

_log = logging.getLogger("cllm.engine")

_HEAD = 1024  # bytes of a file next to tokens and state, at most
_SETTLE_S = 2.0  # a prefix that returns to a slot within this time is not written
_IDLE_S = 1.0  # without a request, after which slots are copied
_REST_S = 60.0  # after a failed write
_NICE = 10  # of the thread
_PAGE = 4096

_T = TypeVar("_T")


class DiskWriter:
    """Owned by the cache on disk.

    written, evicted: prefixes. dropped: those that were not written because the disk was too slow
    or full.
    """

    def __init__(
        self, index: DiskIndex, identity: Callable[[], str], copies: IdleCopies, most: int
    ) -> None:
        """identity: of what can restore the files. most: bytes of prefixes that wait."""
        self.written = self.dropped = self.evicted = 0
        self.opened = threading.Event()
        self._index = index
        self._identity = identity
        self._copies = copies
        self._most = most
        self._wake: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._pending: deque[tuple[float, Saved]] = deque()  # and when to write it
        self._writing: Saved | None = None
        self._found: Saved | None = None  # in host memory, and about to be pending
        self._blocked_until = 0.0  # after a failed write
        self._failed = False
        self._idle_since: float | None = None
        self._round_done = True  # of copies, since the engine is idle
        self._round_bytes = 0
        self._question: tuple[Callable[[], object], Future[object]] | None = None
        self._closing: float | None = None  # until when may be written
        self._complete = False  # nothing more is offered
        self._thread = threading.Thread(target=self._run, name="cllm-cache-writer", daemon=True)

    def start(self, wake: Callable[[], None]) -> None:
        """wake: makes an idle engine thread call serve()."""
        self._wake = wake
        self._thread.start()

    # The engine thread.

    def offer(self, saved: Saved) -> None:
        """Write a prefix in host memory, unless it is withdrawn soon or the disk is too slow."""
        if self._is_worth(saved.tokens, saved.scope, saved.whole):
            with self._changed:
                self._enqueue(saved, monotonic() + _SETTLE_S)

    def withdraw(self, saved: Saved) -> None:
        """Do not write a prefix that moves back into a slot; it will grow there."""
        with self._changed:
            self._pending = deque(item for item in self._pending if item[1] is not saved)

    def uses(self, data: Bytes) -> bool:
        """Whether a buffer is still needed for writing."""
        with self._changed:
            coming = [*(saved for _, saved in self._pending), self._writing, self._found]
        return any(saved is not None and saved.data.base is data.base for saved in coming)

    def note_busy(self) -> None:
        """There are requests: slots are not copied."""
        if self._idle_since is not None:
            with self._changed:
                self._idle_since = None
                self._changed.notify_all()

    def note_idle(self) -> None:
        """There are no requests."""
        if self._idle_since is None:
            with self._changed:
                self._idle_since = monotonic()
                self._round_done, self._round_bytes = False, 0
                self._changed.notify_all()

    def serve(self) -> None:
        """Do what only the engine thread can do, while there are no requests."""
        with self._changed:
            question, self._question = self._question, None
        if question is None:
            return
        ask, answer = question
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)
        with self._changed:
            self._changed.notify_all()

    # The thread that closes the engine, after the engine thread's end.

    def finish(self, deadline: float, keep: bool) -> None:
        """Write what is worth keeping, until the deadline, and let the thread end.

        keep: also what is not in the queue yet.
        """
        with self._changed:
            self._closing = deadline
            self._changed.notify_all()
        try:
            if keep and self.opened.wait(max(0.0, deadline - monotonic())):
                self._offer_the_rest(deadline)
        except Exception:
            _log.exception("cache on disk: prefixes are not written")
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _offer_the_rest(self, deadline: float) -> None:
        copies, room = self._copies, self._index.limit
        copies.begin()
        while monotonic() < deadline and (found := copies.find(self._is_worth, room)) is not None:
            source, size = found
            room -= size
            with self._changed:
                self._changed.wait_for(
                    lambda size=size: not self._pending or self._has_room(size),  # type: ignore[misc]
                    max(0.0, deadline - monotonic()),
                )
            saved = copies.copy(source, new_memory(size)) if isinstance(source, Slot) else source
            if saved is not None:
                with self._changed:
                    self._enqueue(saved, 0.0)

    # Any of the threads.

    def _is_worth(self, tokens: array[int], scope: Scope, whole: bool) -> bool:
        """Whether enough of a prefix is not on disk, and not on its way there."""
        if not (self._index.is_open and scope.durable) or monotonic() < self._blocked_until:
            return False
        found = self._index.best(tokens, digest_of(scope))
        held = 0 if found is None else found[1]
        with self._changed:
            coming = [saved for _, saved in self._pending]
            if self._writing is not None:
                coming.append(self._writing)
        for saved in coming:
            if saved.scope == scope:
                n = common_prefix(saved.tokens, tokens)
                if n == saved.length or not saved.whole:
                    held = max(held, n)
        return is_worth_saving(len(tokens), len(tokens) - held)

    def _has_room(self, size: int) -> bool:
        return sum(saved.data.nbytes for _, saved in self._pending) + size <= self._most

    def _enqueue(self, saved: Saved, at: float) -> None:
        """Add a prefix in place of those that it contains; with the lock."""
        self._pending = deque(
            item for item in self._pending if item[1].whole or not _contains(saved, item[1])
        )
        if self._pending and not self._has_room(saved.data.nbytes):
            self.dropped += 1
            return
        self._pending.append((at, saved))
        self._changed.notify_all()

    # The thread.

    def _run(self) -> None:
        if sys.platform == "linux":  # where the priority is a thread's own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._open()
        except Exception as error:
            _log.error(
                "cache on disk: %s cannot be used: %s",
                self._index.directory,
                error,
                exc_info=_unexpected(error),
            )
            return
        finally:
            self.opened.set()
        while self._wait_for_work():
            try:
                if self._writing is not None:
                    self._write(self._writing)
                else:
                    self._take_from_idle()
            except Exception as error:
                self._rest_after(error)
            finally:
                with self._changed:
                    self._writing = self._found = None
                    self._changed.notify_all()

    def _open(self) -> None:
        index = self._index
        index.open(self._identity())
        _log.info(
            "cache on disk: %s has %d prefixes for this model, %.1f of %.1f MiB are used",
            index.directory,
            len(index),
            index.bytes / 2**20,
            index.limit / 2**20,
        )

    def _wait_for_work(self) -> bool:
        """Wait for a prefix to write, which is then `_writing`, or an idle engine. False: end."""
        with self._changed:
            while True:
                now = monotonic()
                if self._closing is not None and now >= self._closing:
                    self.dropped += len(self._pending)
                    self._pending.clear()
                    return False
                if self._pending and (self._closing or self._pending[0][0] <= now):
                    self._writing = self._pending.popleft()[1]
                    return True
                if self._complete:
                    return False
                times = [at for at, _ in self._pending]
                if self._closing is not None:
                    times = [self._closing]
                elif self._idle_since is not None and not self._round_done:
                    due = max(self._idle_since + _IDLE_S, self._blocked_until)
                    if due <= now:
                        return True
                    times.append(due)
                self._changed.wait(min(times) - now if times else None)

    def _write(self, saved: Saved) -> None:
        index, scope = self._index, digest_of(saved.scope)
        tokens, state = saved.tokens, saved.data
        head = Head(index.identity, KIND, scope, saved.whole, len(tokens), state.nbytes)
        entry = Entry(index.path_of(tokens, scope), head, tokens)
        try:
            self.evicted += index.make_room(state.nbytes + 4 * len(tokens) + _HEAD)
            index.folder.mkdir(mode=0o700, exist_ok=True)
            prefix_file.write(entry.path, head, tokens, state, self._may_write)
            index.add(entry)
            for shorter in index.contained(entry):
                index.remove(shorter.path)
            index.refresh()
            self.written += 1
            self._failed = False
        except StoppedError:
            self.dropped += 1

    def _rest_after(self, error: Exception) -> None:
        """Drop what waits, and do nothing for a while; log it once, until a write succeeds."""
        self._blocked_until = monotonic() + _REST_S
        with self._changed:
            self.dropped += len(self._pending) + (self._writing is not None)
            self._pending.clear()
        if not self._failed:
            self._failed = True
            _log.warning(
                "cache on disk: a prefix is not written: %s (logged once)",
                error,
                exc_info=_unexpected(error),
            )

    def _may_write(self) -> bool:
        return self._closing is None or monotonic() < self._closing

    def _take_from_idle(self) -> None:
        """Let the engine thread copy a slot, if it is still idle, and write the copy next."""
        copies, index = self._copies, self._index
        if not self._round_bytes:
            self._ask(copies.begin)
            with suppress(OSError):
                index.refresh()  # another process may have written some

        none_left = False

        def find() -> tuple[Saved | Slot, int] | None:
            nonlocal none_left
            none_left = True  # also if find() raises
            found = copies.find(self._is_worth, index.limit - self._round_bytes)
            none_left = found is None
            if found is not None and isinstance(found[0], Saved):
                with self._changed:
                    self._found = found[0]
            return found

        found = self._ask(find)
        saved: Saved | None = None
        if found is not None:
            source, size = found
            self._round_bytes += size
            if isinstance(source, Slot):
                slot, memory = source, new_memory(size)
                memory[::_PAGE] = 0  # the system provides the pages here, not to the engine thread
                saved = self._ask(lambda: copies.copy(slot, memory))
            else:
                saved = source
        with self._changed:
            if saved is not None:
                self._pending.appendleft((0.0, saved))
            elif none_left and self._idle_since is not None:
                self._round_done = True

    def _ask(self, ask: Callable[[], _T]) -> _T | None:
        """What a function returns on the idle engine thread; None: a request came, or it raised."""
        answer: Future[_T] = Future()

        def is_over() -> bool:
            return answer.done() or self._idle_since is None or self._closing is not None

        with self._changed:
            self._question = (ask, answer)  # type: ignore[assignment]
        self._wake()
        with self._changed:
            self._changed.wait_for(is_over)
            self._question = None
        if not answer.done():
            return None
        try:
            return answer.result()
        except Exception as error:
            _log.warning("cache on disk: an idle slot is not copied: %s", error)
            return None


def _unexpected(error: Exception) -> bool:
    """Whether a line does not explain it."""
    return not isinstance(error, (OSError, MemoryError))


def _contains(longer: Saved, shorter: Saved) -> bool:
    shared = common_prefix(longer.tokens, shorter.tokens)
    return longer.scope == shorter.scope and adds_little(shorter.length, shared)
