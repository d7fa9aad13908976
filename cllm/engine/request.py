"""What every request to the engine has: an end, cancellation, counts and timings.

Any thread may read, cancel and wait. The engine thread writes, through a RequestWriter.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from cllm.engine.errors import EngineError
from cllm.engine.machine.uninterrupted import Uninterrupted

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


class Meter(Protocol):
    """Is told when requests are submitted and when they have ended, each exactly once."""

    def began(self, request: Request) -> None:
        """Before it is queued; on the thread that submits."""

    def ended(self, request: Request) -> None:
        """Its counts are final; on the engine thread, or where it could not be queued."""


class Request:
    """One request's progress, as its client sees it.

    submitted: when, by time.monotonic(). cancel_requested: whether cancel() was called before the
    end. on_update is called after each step that changed this request, on the engine thread or on
    the one that works for it while llama_decode runs; it must return at once and must not call back
    into the engine other than to cancel.
    """

    __slots__ = (
        "_admitted",
        "_cancel",
        "_finish_reason",
        "_finished",
        "_first_token",
        "_latch",
        "_meter",
        "_on_update",
        "cancel_requested",
        "error",
        "id",
        "submitted",
        "usage",
    )

    def __init__(
        self,
        prompt_tokens: int,
        on_update: Callable[[], None] | None = None,
        cancel: Callable[[Any], None] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter
        self.id: str = uuid.uuid4().hex
        self.usage = Usage(prompt_tokens)
        self.error: EngineError | None = None
        self._on_update = on_update
        self._cancel = cancel
        self.cancel_requested = False
        self._finish_reason: FinishReason | None = None
        self.submitted = time.monotonic()
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
    def begun(self) -> bool:
        """Whether work on it has begun."""
        return self._admitted > 0

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
            queued_s=admitted - self.submitted,
            prefill_s=first - admitted,
            decode_s=end - first,
            ttft_s=first - self.submitted if began else 0.0,
            total_s=end - self.submitted,
            tokens_per_second=self.usage.completion_tokens / working if working > 0 else 0.0,
        )

    def cancel(self) -> None:
        """End it before the next decode, wherever it stands; harmless when it has ended."""
        with Uninterrupted():
            if not self.cancel_requested and not self.done:
                self.cancel_requested = True
                cancel = self._cancel
                if cancel is not None:
                    cancel(self)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises the request's EngineError if it ended with one, and TimeoutError after `timeout`
        seconds.
        """
        if not self.done:  # else Ctrl-C in another call may have left it taken
            if not self._latch.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
                raise TimeoutError(f"request {self.id} did not finish within {timeout} s")
            self._latch.release()
        if self.error is not None:
            raise self.error


class RequestWriter:
    """The engine's side of a request. Engine thread only."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def admitted(self) -> bool:
        """Whether work on it has begun."""
        return self._request.begun

    def admit(self) -> None:
        """Note when work on it begins; the first time counts."""
        if not self._request._admitted:
            self._request._admitted = time.monotonic()

    def count_token(self, now: float) -> float:
        """Count a generated token; return the seconds since the first one."""
        request = self._request
        request.usage.completion_tokens += 1
        first = request._first_token
        if not first:
            request._first_token = first = now
        return now - first

    def finish(self, reason: FinishReason, error: EngineError | None = None) -> None:
        """End it, unless it has ended; threads in wait() return."""
        request = self._request
        if request._finish_reason is not None:
            return
        request._finished = time.monotonic()
        self.end_metering()
        request.error = error
        request._finish_reason = reason
        request._cancel = None
        request._latch.release()

    def begin_metering(self) -> None:
        """Tell the meter that it is about to be queued."""
        if self._request._meter is not None:
            self._request._meter.began(self._request)

    def end_metering(self) -> None:
        """Tell the meter that its counts are final."""
        meter, self._request._meter = self._request._meter, None
        if meter is not None:
            try:
                meter.ended(self._request)
            except Exception:  # the engine thread serves other requests
                _log.exception("the meter of request %s failed", self._request.id)

    def notify(self) -> None:
        """Call its on_update callback; what that raises is logged."""
        request = self._request
        if request._on_update is not None:
            try:
                request._on_update()
            except BaseException:  # also SystemExit: the engine thread serves other requests
                _log.exception("the on_update callback of request %s failed", request.id)
