"""A worker thread: takes a connection, runs it until it would block, takes the next one."""

from __future__ import annotations

import logging
import threading
from time import sleep
from typing import TYPE_CHECKING

from cllm.http.stats import Counters

if TYPE_CHECKING:
    from cllm.http.connection import Connection
    from cllm.http.connection_queue import ConnectionQueue

_log = logging.getLogger("cllm.http")

# One read takes at most this much; shared by all connections that this worker runs, so that a
# parked connection holds none.
RECEIVE_BUFFER = 64 * 1024  # bytes

AFTER_FAILURE = 0.05  # s


class Worker:
    """What belongs to one thread: its receive buffer, its counters, what it is running."""

    __slots__ = ("buffer", "counters", "current", "others", "queue", "thread")

    def __init__(self, queue: ConnectionQueue, number: int) -> None:
        self.queue = queue
        self.others = queue.items  # not empty: others wait for this worker's turn to end
        self.buffer = memoryview(bytearray(RECEIVE_BUFFER))
        self.counters = Counters()
        self.current: Connection | None = None
        # A daemon, so that a handler that never returns cannot keep the process from ending.
        self.thread = threading.Thread(target=self._run, name=f"cllm-worker-{number}", daemon=True)

    def _run(self) -> None:
        take = self.queue.take
        while True:
            try:
                connection = take()
            except Exception:
                # Whatever it was, out of memory above all: no other worker replaces this one.
                _log.exception("%s raised an exception; it continues", self.thread.name)
                sleep(AFTER_FAILURE)
                continue
            if connection is None:
                return
            self.current = connection
            connection.run(self)
            self.current = None
