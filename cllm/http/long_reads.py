"""Ends reads that take a worker's processor time and give nothing.

OpenSSL reads on until it has content. Records without any, such as TLS 1.3's KeyUpdate (RFC 8446
section 4.6.3), hold the thread as long as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread
from time import monotonic

from cllm.http.transport import NOT_READING, Transport

LOOK_INTERVAL = 0.02  # s

LONGEST_READ = 0.05  # s of processor time, so that a busy machine ends none; a record takes 10 µs
LONGEST_WAIT = 0.5  # s, where the system does not say how much time a thread has used


class LongReads:
    """Looks at what the workers read at this moment; by the acceptor only."""

    def __init__(self, running: Callable[[], Iterable[tuple[Thread, Transport]]]) -> None:
        """running: the workers that run a connection, and its transport."""
        self._running = running
        self._next_look = 0.0
        # By thread: when its read began, and its clock when that was first seen.
        self._seen: dict[Thread, tuple[float, float]] = {}

    def look(self, now: float) -> None:
        """Reset the connections whose reads go on without an end; call it often."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL
        before, self._seen = self._seen, {}
        for thread, transport in self._running():
            since = transport.reading_since
            if since == NOT_READING:
                continue
            clock, most = _clock(thread)
            seen = before.get(thread)
            if seen is None or seen[0] != since:
                seen = (since, clock)
            elif clock - seen[1] > most:
                transport.end_read()
                continue
            self._seen[thread] = seen


def _clock(thread: Thread) -> tuple[float, float]:
    """The processor time of a thread, or the time; and how much of it a read may take."""
    try:
        with open(f"/proc/self/task/{thread.native_id}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1e9, LONGEST_READ
    except (OSError, ValueError, IndexError):
        return monotonic(), LONGEST_WAIT
