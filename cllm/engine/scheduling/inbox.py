"""Messages to the engine thread: new requests, up to a limit; cancellations; the end."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic

from cllm.engine.errors import EngineClosed, EngineError, QueueFull, described
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.request import Request
from cllm.engine.scheduling.fairness import T
from cllm.engine.sharing import Share, gives_way


@dataclass(frozen=True, slots=True)
class Messages(Generic[T]):
    """What take() returns.

    displaced: requests that left the queue for those of other tenants, and the errors to end them.
    shares: of tenants, newer than those of the arrivals.
    """

    arrivals: list[T]
    cancelled: set[Request]
    displaced: list[tuple[T, QueueFull]]
    shares: dict[str, Share] = field(default_factory=dict)


_NOTHING: Messages[Any] = Messages([], set(), [])


class Inbox(Generic[T]):
    """Requests on their way to the engine thread; put, renew, cancel, wake, stop: any thread."""

    def __init__(self, max_running: int, max_queue: int) -> None:
        """max_running: requests that can be worked on at once; they do not count as waiting."""
        self.failure: Exception | None = None
        self.submitted = 0
        self.refused = 0
        self._max_running = max_running
        self._most = max_running + max_queue
        self._process = OwnProcess()
        # Entered by itself: a condition is entered in Python, where Ctrl-C may leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._arrivals: list[T] = []
        self._cancelled: set[Request] = set()
        self._displaced: list[tuple[T, QueueFull]] = []
        self._shares: dict[str, Share] = {}
        self._waiting: dict[str, dict[T, None]] = {}  # by tenant, the newest last
        self._in_flight = 0
        self._ended = 0  # since the last take()
        self._own: dict[str, int] = {}  # in flight, by tenant
        self._woken = False
        self.stopping = False  # for good: stop(), a failure, or the end of the thread
        self._mean_s = 0.0

    @property
    def in_flight(self) -> int:
        """Requests that were put here and have not ended."""
        return self._in_flight

    def put(self, item: T) -> None:
        """Add a request. Raises QueueFull, EngineClosed, or EngineError if the thread died.

        If the queue is full, the newest request of the tenant with the most waiting is refused.
        """
        self._process.check()
        with self._lock:
            yielding = self._check_open(item.tenant, item.share)
            if yielding is not None:
                self._displace(yielding)
            self._in_flight += 1
            self._own[item.tenant] = self._own.get(item.tenant, 0) + 1
            self.submitted += 1
            self._arrivals.append(item)
            self._waiting.setdefault(item.tenant, {})[item] = None
            self._changed.notify()

    def check_open(self, tenant: str, share: Share) -> None:
        """Raise what put would raise now, before the work of preparing a request."""
        self._process.check()
        with self._lock:
            self._check_open(tenant, share)

    def _check_open(self, newcomer: str, share: Share) -> str | None:
        """The tenant whose newest request is refused instead; None: there is room."""
        if self.failure is not None:
            raise self.ending() from self.failure
        if self.stopping:
            raise EngineClosed
        if share.most is not None and self._own.get(newcomer, 0) >= share.most:
            self.refused += 1
            raise QueueFull(len(self._waiting.get(newcomer, ())), self._retry_after())
        if self._in_flight < self._most:
            return None
        yielding = gives_way(self._waiting, newcomer)
        if yielding == newcomer:
            self.refused += 1
            raise self._queue_full()
        return yielding

    def _displace(self, tenant: str) -> None:
        newest = next(reversed(self._waiting[tenant]))
        self._forget(newest)
        self.refused += 1
        self._displaced.append((newest, self._queue_full()))

    def _forget(self, item: T) -> None:
        """Note that a request waits no longer; no effect if it did not wait."""
        waiting = self._waiting.get(item.tenant)
        if waiting is not None and item in waiting:
            del waiting[item]
            if not waiting:
                del self._waiting[item.tenant]

    def _queue_full(self) -> QueueFull:
        return QueueFull(self._in_flight - self._max_running, self._retry_after())

    def _retry_after(self) -> int:
        """Mean seconds of a request, after which as many more have begun; 5 while unknown."""
        return min(60, max(1, math.ceil(self._mean_s))) if self._mean_s else 5

    def waiting(self, most: int) -> list[tuple[str, int, list[T]]]:
        """Tenants with waiting requests: the name, how many wait, and the oldest `most` of them."""
        with self._lock:
            return [
                (tenant, len(items), list(islice(items, most)))
                for tenant, items in self._waiting.items()
            ]

    def renew(self, tenant: str, share: Share) -> None:
        """Give a tenant another share, also for its requests that wait."""
        with self._lock:
            self._shares[tenant] = share
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """End a request before the next step."""
        with self._lock:
            self._cancelled.add(request)
            self._changed.notify()

    def wake(self) -> None:
        """Make take() return: the engine thread has something else to do."""
        with self._lock:
            self._woken = True
            self._changed.notify()

    def stop(self) -> None:
        """Make take() return None, and refuse new requests."""
        with self._lock:
            self.stopping = True
            self._changed.notify()

    # The engine thread.

    def take(
        self, *, wait: bool, gather_s: float = 0.0, longest: float = math.inf
    ) -> Messages[T] | None:
        """New requests and those that must end; None: stop.

        wait: sleep until there is a message, `longest` seconds at most, then until gather_s
        seconds pass without another request, so that requests that arrive together begin together.
        """
        if not (wait or self._has_news()):  # what comes meanwhile is taken next time
            return _NOTHING
        with self._lock:
            ended, self._ended = self._ended, 0
            if wait:
                timeout = None if longest == math.inf else longest
                self._changed.wait_for(lambda: self._arrivals or self._is_urgent(), timeout)
            if wait and gather_s and self._arrivals:
                self._gather(gather_s, ended)
            if self.stopping:
                return None
            self._woken = False
            arrivals, self._arrivals = self._arrivals, []
            cancelled, self._cancelled = self._cancelled, set()
            displaced, self._displaced = self._displaced, []
            shares, self._shares = self._shares, {}
            return Messages(arrivals, cancelled, displaced, shares)

    def _gather(self, seconds: float, ended: int) -> None:
        """Wait until no request arrives for `seconds`, or for five times as long in all.

        If several ended together, their clients may send the next ones together: until as many
        have arrived, only the longer time counts. Ends early when as many have arrived as can run
        together, and for an urgent message.
        """
        end = time.monotonic() + 5 * seconds
        while len(self._arrivals) < self._max_running and not self._is_urgent():
            left = end - time.monotonic()
            if len(self._arrivals) >= ended:
                left = min(seconds, left)
            if left <= 0 or not self._changed.wait(left):
                return

    def _has_news(self) -> bool:
        return bool(self._arrivals or self._displaced or self._ended) or self._is_urgent()

    def _is_urgent(self) -> bool:
        return bool(self._cancelled or self._shares) or self._woken or self.stopping

    def fail(self, error: BaseException) -> None:
        """Refuse new requests because of an error, and make take() return None."""
        if not isinstance(error, Exception):
            error = EngineError(f"the engine thread ended with {error!r}")
        self.failure = error
        self.stop()

    def ending(self) -> EngineError:
        """The error of requests that are unfinished when the engine thread ends."""
        if self.failure is None:
            return EngineClosed("the engine was closed")
        return EngineError(f"the engine has failed: {described(self.failure)}")

    def close(self) -> list[T]:
        """Refuse new requests; return those that were not taken."""
        with self._lock:
            self.stopping = True
            arrivals, self._arrivals = self._arrivals, []
            return arrivals

    def begun(self, item: T) -> None:
        """Note that work on a request begins: it is not refused for other tenants any more."""
        with self._lock:
            self._forget(item)

    def ended(self, item: T, seconds: float) -> None:
        """Note that a request ended, `seconds` after its work began; 0: it did not begin."""
        if seconds:
            self._mean_s += 0.2 * (seconds - self._mean_s)
        with self._lock:
            self._ended += 1
            self._in_flight -= 1
            self._own[item.tenant] -= 1
            if not self._own[item.tenant]:
                del self._own[item.tenant]
            self._forget(item)
