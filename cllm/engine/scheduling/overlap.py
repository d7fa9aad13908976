"""Work that a thread of its own does for the engine thread while llama_decode runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Thread, current_thread

_log = logging.getLogger("cllm.engine")

Job = Callable[[], None]


class Overlap:
    """Runs jobs between start() and wait(), in their order. Owned by the engine thread.

    The engine thread is in llama_decode meanwhile, without the interpreter lock, and touches
    nothing else. So jobs may use all that is the engine thread's.
    """

    def __init__(self) -> None:
        self._todo: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._thread: Thread | None = None
        self._busy = False
        self._warned = False
        self.hurry = False

    @property
    def is_current(self) -> bool:
        """Whether the caller is a job."""
        return current_thread() is self._thread

    def start(self, jobs: Iterable[Job]) -> None:
        """Begin; without a thread, do all of it now."""
        self.wait()  # a failed step may have skipped it
        todo = list(jobs)
        if not todo:
            return
        if self._thread is None:
            thread = Thread(target=self._run, name="cllm-overlap", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit on threads
                if not self._warned:
                    self._warned = True
                    _log.warning("clients are served between steps, which is slower: %s", error)
                _do(todo)
                return
            self._thread = thread
        self.hurry = False
        self._busy = True
        self._todo.put(todo)

    def wait(self) -> None:
        """Return when the jobs are done. hurry is True: long ones stop where they can."""
        if self._busy:
            self.hurry = True
            self._done.get()
            self._busy = False

    def close(self) -> None:
        """End the thread."""
        self.wait()
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (jobs := self._todo.get()) is not None:
            _do(jobs)
            del jobs  # what they hold may end an engine
            self._done.put(None)


def _do(jobs: list[Job]) -> None:
    for job in jobs:
        try:
            job()
        except BaseException:  # the engine thread waits for this one
            _log.exception("work next to llama_decode failed")
