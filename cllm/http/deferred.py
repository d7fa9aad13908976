"""A response that another thread gives later: resolved, cancelled, or changed by middleware."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cllm.http.body_stream import BodyStream, call_all
from cllm.http.report import report_failure
from cllm.http.response import HttpResponse

_log = logging.getLogger("cllm.http")


class DeferredResponse:
    """A response that another thread will give; no worker waits for it."""

    __slots__ = (
        "_cancel_callbacks",
        "_done_callbacks",
        "_lock",
        "_wake",
        "cancel_reason",
        "response",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self._cancel_callbacks: list[Callable[[str], object]] = []
        self._done_callbacks: list[Callable[[HttpResponse], None]] = []
        self.response: HttpResponse | None = None
        self.cancel_reason: str | None = None

    def resolve(self, response: HttpResponse) -> bool:
        """Give the response; True for the first one given before a cancellation. Any thread.

        A stream in a response that is given too late is cancelled. For anything other than an
        HttpResponse the client gets a 500, and this raises TypeError.
        """
        if not _is_response(response):
            self.resolve(_failure())
            raise TypeError(f"a {type(response).__name__} is not an HttpResponse")
        with self._lock:
            late = self.response is not None or self.cancel_reason is not None
            if not late:
                self.response = response
                self._cancel_callbacks.clear()
                done, self._done_callbacks = self._done_callbacks, []
                wake = self._wake
        if late:
            if isinstance(response.body, BodyStream):
                response.body.cancel(self.cancel_reason or "another response was given")
            return False
        for callback in done:
            callback(response)
        if wake is not None:
            wake()
        return True

    def cancel(self, reason: str) -> bool:
        """There will be no response; False if it was given already. Any thread.

        By the connection: the client no longer waits. By the producer: a client that still waits
        gets a 503 with the reason.
        """
        with self._lock:
            if self.response is not None or self.cancel_reason is not None:
                return False
            self.cancel_reason = reason
            callbacks, self._cancel_callbacks = self._cancel_callbacks, []
            self._done_callbacks.clear()
            wake = self._wake
        call_all(callbacks, reason)
        if wake is not None:
            wake()
        return True

    @property
    def cancelled(self) -> bool:
        return self.cancel_reason is not None

    def on_cancel(self, callback: Callable[[str], object]) -> None:
        """Call `callback(reason)` on cancellation: client gone, deadline, server stop.

        At once if that already happened; never once the response is given.
        """
        with self._lock:
            if self.cancel_reason is None:
                if self.response is None:
                    self._cancel_callbacks.append(callback)
                return
        callback(self.cancel_reason)

    def attach(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, once the response is given or cancelled.

        At once if it already is.
        """
        with self._lock:
            self._wake = wake
            ready = self.response is not None or self.cancel_reason is not None
        if ready:
            wake()

    def then(self, change: Callable[[HttpResponse], HttpResponse]) -> DeferredResponse:
        """The response that `change` makes of this one, for middleware; cancelling works both ways.

        `change` runs on the thread that resolves, and must be quick. An exception in it is logged
        and gives a plain 500.
        """
        changed = DeferredResponse()
        changed.on_cancel(self.cancel)

        def pass_on(response: HttpResponse) -> None:
            try:
                result = change(response)
                if not _is_response(result):
                    raise TypeError(f"the middleware gave a {type(result).__name__}")
            except BaseException as error:
                report_failure(_log, "a middleware failed on a deferred response")
                if isinstance(response.body, BodyStream):
                    response.body.cancel(f"a middleware failed: {error}")
                result = _failure()
            changed.resolve(result)

        with self._lock:
            response = self.response
            if response is None:
                self._done_callbacks.append(pass_on)
        if response is not None:
            pass_on(response)
        self.on_cancel(changed.cancel)
        return changed


def _is_response(value: object) -> bool:
    return isinstance(value, HttpResponse)


def _failure() -> HttpResponse:
    return HttpResponse.json({"success": False, "error": "internal error"}, 500)
