"""Interrupts a step that is no longer wanted: cancelled, expired, or engine closed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cllm.engine.llama import Context
from cllm.engine.request import Request

if TYPE_CHECKING:
    from cllm.engine.scheduling.loop import Work

_log = logging.getLogger("cllm.engine")

_LONGEST_STEP_S = 10.0  # later deadlines are checked between two steps


class Interruption:
    """The engine thread notes whose prompts or inputs a step reads; any thread may end that step.

    A step is bounded to about a second, which is long for a prompt that is no longer wanted. A step
    without a cancelled or expired prompt is not interrupted, except when the engine is closed. Of
    two steps in a row in which others compute too, at most one is interrupted: their work of an
    interrupted step is lost, so a client that sends and cancels prompts could stop them for good.
    """

    def __init__(self, context: Context, can_undo: bool) -> None:
        """can_undo: whether the memory can roll back a step; if not, only stop() interrupts."""
        self._context = context
        self._can_undo = can_undo
        self._lock = threading.Lock()
        self._reading: frozenset[Request] = frozenset()
        self._step = 0
        self._interrupted = False
        self._alone = True  # the step computes for one request only
        self._others_lost = False  # the last step that computed for several was interrupted
        self._stopped = False
        self._timer: threading.Timer | None = None

    # Any thread.

    def cancel(self, request: Request) -> None:
        """End the step in progress if it reads this request's prompt."""
        with self._lock:
            if request in self._reading:
                self._interrupt()

    def stop(self) -> None:
        """End the step in progress and all later ones."""
        with self._lock:
            self._stopped = True
            self._interrupt()

    def _interrupt(self) -> None:
        self._interrupted = True
        self._context.interrupt()

    def _expire(self, step: int) -> None:
        with self._lock:
            if step == self._step and self._reading:
                self._interrupt()

    # The engine thread.

    def begin(self, works: Sequence[Work], alone: bool) -> None:
        """Note that a step begins that reads these prompts. alone: it computes for one request."""
        self._alone = alone
        may = self._can_undo and (alone or not self._others_lost)
        reading = works if may else ()
        if not reading and not self._interrupted:
            return  # only stop() can interrupt it
        with self._lock:
            self._step += 1
            self._reading = frozenset(work.request for work in reading)
            if not self._stopped:
                self._interrupted = False
                self._context.resume()
        # Cancelled before it was known what the step reads.
        if any(work.request.cancel_requested for work in reading):
            with self._lock:
                self._interrupt()
        deadline = min((work.deadline for work in reading), default=math.inf)
        if deadline - time.monotonic() < _LONGEST_STEP_S:
            self._start_timer(deadline)

    def _start_timer(self, deadline: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        timer = threading.Timer(left, self._expire, (self._step,))
        timer.name, timer.daemon = "cllm-deadline", True
        try:
            timer.start()
        except RuntimeError:  # no thread can be started: the deadline is checked after the step
            _log.debug("no thread for a deadline", exc_info=True)
        else:
            self._timer = timer

    def end(self) -> bool:
        """Note that the step has ended; return whether it was interrupted."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if self._reading:
            with self._lock:
                self._reading = frozenset()
        if not self._alone:
            self._others_lost = self._interrupted
        return self._interrupted
