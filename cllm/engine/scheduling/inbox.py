"""What other threads leave for the engine thread: bounded arrivals, cancellations, the end."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Generic

from cllm.engine.errors import EngineClosed, EngineError, QueueFull, described
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.request import Request
from cllm.engine.scheduling.fairness import T, gives_way


@dataclass(frozen=True, slots=True)
class Messages(Generic[T]):
    """What take() gives.

    displaced: requests that give way to those of other tenants, and the errors that end them.
    """

    arrivals: list[T]
    cancelled: set[Request]
    displaced: list[tuple[T, QueueFull]]


class Inbox(Generic[T]):
    """Requests on their way to the engine thread; put, cancel, wake and stop are for any thread."""

    def __init__(self, max_running: int, max_queue: int) -> None:
        """max_running: requests that are not waiting because they are worked on."""
        self.failure: Exception | None = None
        self.submitted = 0
        self.refused = 0
        self._max_running = max_running
        self._most = max_running + max_queue
        self._process = OwnProcess()
        self._changed = threading.Condition()
        self._arrivals: list[T] = []
        self._cancelled: set[Request] = set()
        self._displaced: list[tuple[T, QueueFull]] = []
        self._waiting: dict[str, dict[T, None]] = {}  # by tenant, the newest last
        self._in_flight = 0
        self._woken = False
        self._stopping = False
        self._mean_s = 0.0

    @property
    def in_flight(self) -> int:
        """Requests that were put here and have not ended."""
        return self._in_flight

    def put(self, item: T) -> None:
        """Leave a request. Raises QueueFull, EngineClosed, or EngineError if the thread died.

        Where no more may wait, the newest request of the tenant that has most waiting gives way.
        """
        self._process.check()
        with self._changed:
            yielding = self._check_open(item.tenant)
            if yielding is not None:
                self._displace(yielding)
            self._in_flight += 1
            self.submitted += 1
            self._arrivals.append(item)
            self._waiting.setdefault(item.tenant, {})[item] = None
            self._changed.notify()

    def check_open(self, tenant: str) -> None:
        """Raise what put would raise now, before effort goes into preparing a request."""
        self._process.check()
        with self._changed:
            self._check_open(tenant)

    def _check_open(self, newcomer: str) -> str | None:
        """The tenant that must give way; None: there is room."""
        if self.failure is not None:
            raise self.ending() from self.failure
        if self._stopping:
            raise EngineClosed
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
        """It does not wait any more; nothing happens if it did not."""
        waiting = self._waiting.get(item.tenant)
        if waiting is not None and item in waiting:
            del waiting[item]
            if not waiting:
                del self._waiting[item.tenant]

    def _queue_full(self) -> QueueFull:
        return QueueFull(self._in_flight - self._max_running, self._retry_after())

    def _retry_after(self) -> int:
        """Seconds that a request takes, once one has ended: then as many more have begun."""
        return min(60, max(1, math.ceil(self._mean_s))) if self._mean_s else 5

    def cancel(self, request: Request) -> None:
        """Ask for the end of a request before the next step."""
        with self._changed:
            self._cancelled.add(request)
            self._changed.notify()

    def wake(self) -> None:
        """Let take() return: there is something for the engine thread elsewhere."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def stop(self) -> None:
        """Make take() give None, and refuse what comes from now on."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    # The engine thread.

    def take(self, *, wait: bool, gather_s: float = 0.0) -> Messages[T] | None:
        """What arrived and which requests must end; None: stop.

        wait: sleep until there is something, and then until nobody joins the first arrival for
        gather_s seconds, so that those who come together begin together.
        """
        with self._changed:
            while wait and not (self._arrivals or self._is_urgent()):
                self._changed.wait()
            if wait and gather_s:
                self._gather(gather_s)
            if self._stopping:
                return None
            self._woken = False
            arrivals, self._arrivals = self._arrivals, []
            cancelled, self._cancelled = self._cancelled, set()
            displaced, self._displaced = self._displaced, []
            return Messages(arrivals, cancelled, displaced)

    def _gather(self, seconds: float) -> None:
        """Let arrivals come until nobody does for so long, or for five times as long in all.

        All that can run together, and what is urgent, ends it too.
        """
        end = time.monotonic() + 5 * seconds
        while len(self._arrivals) < self._max_running and not self._is_urgent():
            left = min(seconds, end - time.monotonic())
            if left <= 0 or not self._changed.wait(left):
                return

    def _is_urgent(self) -> bool:
        return bool(self._cancelled) or self._woken or self._stopping

    def fail(self, error: BaseException) -> None:
        """Refuse everything from now on because of an error, and make take() give None."""
        if not isinstance(error, Exception):
            error = EngineError(f"the engine thread ended with {error!r}")
        self.failure = error
        self.stop()

    def ending(self) -> EngineError:
        """What requests end with that were not finished when the engine thread was."""
        if self.failure is None:
            return EngineClosed("the engine was closed")
        return EngineError(f"the engine has failed: {described(self.failure)}")

    def close(self) -> list[T]:
        """Refuse everything from now on; what had arrived and was not taken."""
        with self._changed:
            self._stopping = True
            arrivals, self._arrivals = self._arrivals, []
            return arrivals

    def begun(self, item: T) -> None:
        """A request is worked on: it cannot give way to others any more."""
        with self._changed:
            self._forget(item)

    def ended(self, item: T, seconds: float) -> None:
        """A request has ended, `seconds` after its work began; 0: it did not begin."""
        if seconds:
            self._mean_s += 0.2 * (seconds - self._mean_s)
        with self._changed:
            self._in_flight -= 1
            self._forget(item)
