"""Reads prefixes from disk on a thread of its own, where that is faster than evaluating them."""

from __future__ import annotations

import logging
import os
import threading
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from weakref import WeakValueDictionary

from cllm.engine.cache import prefix_file
from cllm.engine.cache.disk_index import DiskIndex, Entry, digest_of
from cllm.engine.cache.prefix_cache import WORTH_SAVING
from cllm.engine.cache.prefix_file import DamagedError, StoppedError
from cllm.engine.cache.saved_prefixes import Saved, new_memory
from cllm.engine.sharing import Scope

_log = logging.getLogger("cllm.engine")

_UNKNOWN_S = 5.0  # for reading a file while it is not known how fast prompts are evaluated
_PATIENCE_S = 0.1  # that reading may take longer than evaluating
_FIRST_RATE = 200e6  # bytes a second, until files were read
_TELLING = 1 << 20  # bytes of a file from which the time to read it tells the disk's speed
_RETRY = 1.02  # growth of the expected rate with each file that is not read because of it


@dataclass(eq=False)  # no slots: it is referred to weakly
class Load:
    """A prefix on its way from the disk.

    until: by time.monotonic(), when evaluating it is faster. saved: what was read, once it is
    `done`; None if it could not be used, or was taken.
    """

    entry: Entry
    scope: Scope
    until: float
    done: bool = False
    saved: Saved | None = None


class DiskReader:
    """Owned by the cache on disk. count: prefixes read."""

    def __init__(self, index: DiskIndex, most: int) -> None:
        """most: bytes of a prefix that is read."""
        self.count = 0
        self._index = index
        self._most = most
        self._rate = _FIRST_RATE
        self._wake: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._queue: deque[Load] = deque()  # the first is being read
        # As long as requests wait for them.
        self._loads: WeakValueDictionary[Entry, Load] = WeakValueDictionary()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="cllm-cache-reader", daemon=True)

    def start(self, wake: Callable[[], None]) -> None:
        """wake: called after each load."""
        self._wake = wake
        self._thread.start()

    def load(
        self, tokens: array[int], scope: Scope, held: int, seconds: Callable[[int], float | None]
    ) -> Load | None:
        """Begin to read the longest prefix of a prompt, of which `held` tokens are held elsewhere.

        seconds: how long evaluating some tokens takes; None: unknown. Returns None if no file has
        many more tokens, or if evaluating them is faster.
        """
        if not scope.durable:
            return None
        found = self._index.best(tokens[:-1], digest_of(scope))
        if found is None or found[1] - held < WORTH_SAVING:
            return None
        entry, n = found
        evaluating = seconds(n - held)
        limit = _UNKNOWN_S if evaluating is None else evaluating
        with self._changed:
            if self._closing or entry.head.n_state > self._most:
                return None
            known = self._loads.get(entry)
            if known is not None and not (known.done and known.saved is None):
                return known
            queued = sum(each.entry.head.n_state for each in self._queue)
            if entry.head.n_state + queued > self._rate * limit:
                self._rate *= _RETRY
                return None
            load = Load(entry, scope, monotonic() + limit + _PATIENCE_S)
            self._loads[entry] = load
            self._queue.append(load)
            self._changed.notify_all()
            return load

    def stop(self) -> None:
        """Let the thread end; what is being read is not used."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    # The thread.

    def _run(self) -> None:
        while (load := self._next()) is not None:
            try:
                load.saved = self._read(load)
            except Exception:
                _log.exception("cache on disk: %s is not used", load.entry.path)
            finally:
                with self._changed:
                    load.done = True
                    self._queue.popleft()
                self._wake()
                del load

    def _next(self) -> Load | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return None if self._closing else self._queue[0]

    def _read(self, load: Load) -> Saved | None:
        entry, began = load.entry, perf_counter()

        def in_time() -> bool:
            return not self._closing and monotonic() < load.until

        if not in_time():  # others were read before it
            return None
        try:
            data = new_memory(entry.head.n_state)
            prefix_file.read(entry.path, entry.head, entry.tokens, data, in_time)
        except FileNotFoundError:  # another process removed it
            self._index.remove(entry.path)
            return None
        except StoppedError:
            self._rate /= 2
            return None
        except (DamagedError, OSError) as why:
            self._index.discard(entry.path, why)
            return None
        except MemoryError:
            return None
        if data.nbytes >= _TELLING:
            self._rate += 0.3 * (data.nbytes / (perf_counter() - began) - self._rate)
        with suppress(OSError):
            os.utime(entry.path)  # the time of its last use
        self.count += 1
        return Saved(entry.tokens, data, entry.head.whole, load.scope, "disk")
