"""A worker thread: takes a connection, runs it until it would block, takes the next one."""

from __future__ import annotations

import logging
import threading
from time import sleep

from cllm.http.connection import Connection
from cllm.http.connection_queue import ConnectionQueue
from cllm.http.report import report_failure
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

AFTER_FAILURE = 0.05  # s


class Worker:
    """One thread, what it lends to connections, and the one that it is running."""

    __slots__ = ("current", "queue", "thread", "workspace")

    def __init__(self, queue: ConnectionQueue[Connection], number: int) -> None:
        self.queue = queue
        self.workspace = Workspace(queue.items)
        self.current: Connection | None = None
        # A daemon, so that a handler that never returns cannot keep the process from ending.
        self.thread = threading.Thread(target=self._run, name=f"cllm-worker-{number}", daemon=True)

    def _run(self) -> None:
        take, workspace = self.queue.take, self.workspace
        while True:
            try:
                connection = take()
            except Exception:
                # Any error, most likely out of memory: no other worker replaces this one.
                report_failure(_log, "%s failed; it continues", self.thread.name)
                sleep(AFTER_FAILURE)
                continue
            if connection is None:
                return
            self.current = connection
            connection.run(workspace)
            self.current = None
