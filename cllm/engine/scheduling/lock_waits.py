"""How long an engine thread waits for the interpreter lock while another thread computes in Python.

That thread keeps the lock for the switch interval, 5 ms by default. The engine thread releases the
lock in llama_decode, and numpy does when it filters logits, so a step may wait several times. While
an engine works the interval is shorter, for the whole process. An idle engine leaves it as it was:
a short interval costs programs that do not wait for tokens. An interval that the program sets
meanwhile stays.
"""

from __future__ import annotations

import os
import sys
import threading

_BUSY_S = 0.001  # measured: docs/lab_notes.md, "The slowest gaps"


class _LockWaits:
    """The switch interval, while no engine works and while any does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working = 0
        self._usual = self._short = 0.0

    def shorten(self) -> None:
        """An engine begins to work."""
        with self._lock:
            self._working += 1
            if self._working == 1:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, _BUSY_S))
                self._short = sys.getswitchinterval()

    def restore(self) -> None:
        """An engine rests."""
        with self._lock:
            self._working -= 1
            if not self._working:
                self._lengthen()

    def reset(self) -> None:
        """In a fork, where no engine works, and the lock may be held by a thread that is gone."""
        self._lock = threading.Lock()
        if self._working:
            self._working = 0
            self._lengthen()

    def _lengthen(self) -> None:
        if sys.getswitchinterval() == self._short:
            sys.setswitchinterval(self._usual)


lock_waits = _LockWaits()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lock_waits.reset)
