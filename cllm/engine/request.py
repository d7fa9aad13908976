"""What every request to the engine has: an end, cancellation, counts and timings.

The engine thread is the only writer (the underscored methods); any thread may read, cancel and
wait.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cllm.engine.errors import EngineError

_log = logging.getLogger("cllm.engine")


class FinishReason(str, Enum):
    """How a request ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(slots=True)
class Usage:
    """Tokens of one request.

    completion_tokens counts every token generated, an end-of-generation token included.
    cached_tokens are those of the prompt that were not evaluated again.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of a request's phases, in seconds; 0 for a phase that has not begun.

    queued_s: from submission to a sequence slot. prefill_s: from there to the first token.
    decode_s: from the first token to the last. ttft_s: from submission to the first token.
    tokens_per_second: tokens generated per second of prefill and decoding.
    """

    queued_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    total_s: float
    tokens_per_second: float


class Request:
    """One request's progress.

    on_update is called on the engine thread after each step that changed this request; it must
    return at once and must not call the engine, except to cancel.
    """

    __slots__ = (
        "_admitted",
        "_cancel",
        "_cancel_requested",
        "_finish_reason",
        "_finished",
        "_first_token",
        "_latch",
        "_on_update",
        "_submitted",
        "error",
        "id",
        "usage",
    )

    def __init__(
        self,
        prompt_tokens: int,
        on_update: Callable[[], None] | None = None,
        cancel: Callable[[Any], None] | None = None,
    ) -> None:
        self.id: str = uuid.uuid4().hex
        self.usage = Usage(prompt_tokens)
        self.error: EngineError | None = None
        self._on_update = on_update
        self._cancel = cancel
        self._cancel_requested = False
        self._finish_reason: FinishReason | None = None
        self._submitted = time.monotonic()
        self._admitted = 0.0
        self._first_token = 0.0
        self._finished = 0.0
        # Held until the end; a thread waits by taking it. An Event would cost 1 KiB.
        self._latch = threading.Lock()
        self._latch.acquire()

    @property
    def done(self) -> bool:
        """Whether it has ended; all its results are published before this is True."""
        return self._finish_reason is not None

    @property
    def finish_reason(self) -> str | None:
        """One of "stop", "length", "cancelled", "error"; None while it runs."""
        reason = self._finish_reason
        return None if reason is None else reason.value

    @property
    def timings(self) -> Timings:
        """The timings up to now or to the end."""
        end = self._finished or time.monotonic()
        admitted = self._admitted or end
        first = self._first_token or end
        began = self._first_token > 0
        working = end - admitted
        return Timings(
            queued_s=admitted - self._submitted,
            prefill_s=first - admitted,
            decode_s=end - first,
            ttft_s=first - self._submitted if began else 0.0,
            total_s=end - self._submitted,
            tokens_per_second=self.usage.completion_tokens / working if working > 0 else 0.0,
        )

    def cancel(self) -> None:
        """End it before the next decode, in any state; harmless after its end."""
        if not self._cancel_requested and not self.done:
            self._cancel_requested = True
            cancel = self._cancel
            if cancel is not None:
                cancel(self)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises the request's EngineError if it ended with one, and TimeoutError after `timeout`
        seconds.
        """
        if not self._latch.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError(f"request {self.id} did not finish within {timeout} s")
        self._latch.release()
        if self.error is not None:
            raise self.error

    # Engine thread only.

    def _note_admitted(self, cached_tokens: int) -> None:
        if not self._admitted:
            self._admitted = time.monotonic()
            self.usage.cached_tokens = cached_tokens

    def _finish(self, reason: FinishReason, error: EngineError | None = None) -> None:
        if self._finish_reason is not None:
            return
        self._finished = time.monotonic()
        self.error = error
        self._finish_reason = reason
        self._cancel = None
        self._latch.release()

    def _notify(self) -> None:
        if self._on_update is not None:
            try:
                self._on_update()
            except BaseException:  # also SystemExit: the engine thread serves others
                _log.exception("the on_update callback of request %s failed", self.id)
