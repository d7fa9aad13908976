"""Commands that run on idle slots between two steps: save, restore, erase."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.errors import EngineClosed

Command = tuple[int, Callable[[Slot], Any], "Future[Any]"]  # a slot, what to do when it is idle


class Commands:
    """Commands on their way to the engine thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """wake: wakes the engine thread; called after a command was added."""
        self._wake = wake
        self._lock = threading.Lock()
        self._left: list[Command] = []
        self._closed = False

    def put(self, slot: int, run: Callable[[Slot], Any]) -> Future[Any]:
        """Run something on a slot as soon as no request is in it. Any thread.

        The future gets what `run` returns or raises, or EngineClosed.
        """
        future: Future[Any] = Future()
        with self._lock:
            closed = self._closed
            if not closed:
                self._left.append((slot, run, future))
        if closed:
            future.set_exception(EngineClosed())
        else:
            self._wake()
        return future

    # The engine thread.

    def note_idle(self) -> None:
        """A request has left its slot: if commands wait, there will be another step."""
        if self._left:
            self._wake()

    def obey(self, slots: Sequence[Slot]) -> None:
        """Run the commands whose slots are idle; keep the others for later."""
        if not self._left:
            return
        with self._lock:
            idle = [command for command in self._left if not slots[command[0]].busy]
            self._left = [command for command in self._left if slots[command[0]].busy]
        for index, run, future in idle:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run(slots[index]))
                except Exception as error:
                    future.set_exception(error)

    def close(self, message: str) -> None:
        """End all commands with EngineClosed, those of the future too."""
        with self._lock:
            self._closed = True
            left, self._left = self._left, []
        for _, _, future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineClosed(message))
