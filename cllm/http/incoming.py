"""Request bodies that are not complete: the memory they take, how slow they may be."""

from __future__ import annotations

import threading
from time import monotonic

from cllm.http.errors import HttpError
from cllm.http.limits import ServerConfig
from cllm.http.request import HttpRequest

RETRY_AFTER = 1  # s; a body at the minimum rate completes soon

# A body up to here is counted and never refused: else a few clients that fill the memory, and send
# on at the minimum rate, would keep out every ordinary request. A head may be larger.
SMALL = 16 * 1024  # bytes


class BodyMemory:
    """The bytes of all bodies that are not complete. Any thread.

    Counts received bytes, not announced ones, so that an announcement alone blocks no other client.
    """

    __slots__ = ("_lock", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int, *, small: bool = False) -> None:
        """Count `size` more bytes (fewer if it is negative).

        Raises HttpError 503, and counts nothing, if they would exceed the limit; not if `small`.
        """
        with self._lock:
            if size > 0 and not small and self.used + size > self.limit:
                raise self._full()
            self.used += size

    def check(self, size: int) -> None:
        """Raise HttpError 503 if a body of `size` more bytes would exceed the limit."""
        if size > SMALL and self.used + size > self.limit:
            raise self._full()

    def _full(self) -> HttpError:
        return HttpError(
            503,
            f"the request bodies in progress use the {self.limit} bytes that the server allows "
            "for them; try again soon",
            [("Retry-After", str(RETRY_AFTER))],
        )


class IncomingBody:
    """The body of one request, from its complete head to its last byte. Owner thread only."""

    __slots__ = ("_held", "_memory", "_min_rate", "_timeout", "deadline", "request")

    def __init__(self, request: HttpRequest, memory: BodyMemory, config: ServerConfig) -> None:
        self.request = request  # without its body
        self._memory = memory
        self._held = 0
        self._timeout = config.body_timeout
        self._min_rate = config.min_rate
        self.deadline = monotonic() + config.body_timeout

    def grow(self, buffered: int) -> None:
        """buffered: the bytes received so far. Raises HttpError 503.

        Each byte moves the deadline by the time that it may take at the minimum rate, up to
        `body_timeout` from now: a body that keeps the rate has no time limit.
        """
        more = buffered - self._held
        self._memory.take(more, small=buffered <= SMALL)
        self._held = buffered
        if more > 0:
            latest = monotonic() + self._timeout
            rate = self._min_rate
            self.deadline = min(self.deadline + more / rate, latest) if rate else latest

    def release(self) -> None:
        """It is complete, or will not become so: give its memory back."""
        self._memory.take(-self._held)
        self._held = 0
