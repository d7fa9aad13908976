"""Ctrl-C waits while the main thread changes what other threads share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Uninterrupted:
    """A `with` block on the main thread: Ctrl-C raises KeyboardInterrupt at its end.

    Python may raise it between any two instructions: a lock would stay held, or a request would be
    queued in part, and the engine thread would wait forever. Does nothing on other threads, in an
    outer block of this kind, and where SIGINT has another handler than Python's own. The block
    must be short, and wait for nothing but a lock.
    """

    __slots__ = ("_active", "_pressed", "_undo")

    def __init__(self, undo: Callable[[], object] = lambda: None) -> None:
        """undo: called before KeyboardInterrupt is raised."""
        self._undo = undo
        self._active = self._pressed = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._active = True

    def __exit__(self, *_: object) -> None:
        if self._active:
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if self._pressed:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:  # also of a signal that came just now
                self._undo()
                raise

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._pressed = True
