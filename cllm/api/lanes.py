"""Lanes: threads that run slow requests one after the other, so that they hold no worker.

Large bodies: tokenizing megabytes takes seconds, and 16 clients with 16 MiB of text each would
occupy every worker. Generations without a free slot: they wait anyway, and 1 000 that arrive at
once would delay ``/health`` until all are tokenized and submitted. Requests whose constraint is
being compiled: they resume once that is done.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from cllm.engine import ConstraintPending
from cllm.http import DeferredResponse, HttpError, HttpHandler, HttpRequest, HttpResponse

log = logging.getLogger("cllm.api")

LARGE = 256 * 1024  # bytes of a body; about 50 ms of tokenizing

Answer = HttpResponse | DeferredResponse
Endpoint = Callable[[HttpRequest], Answer]


class Lane:
    """Runs endpoints one after the other; its thread lives while requests wait."""

    __slots__ = ("_handler", "_lock", "_name", "_running", "_waiting")

    def __init__(self, handler: HttpHandler, name: str) -> None:
        """name: the thread's name."""
        self._handler = handler
        self._name = name
        self._lock = threading.Lock()
        self._running = False
        self._waiting: deque[tuple[Endpoint, HttpRequest, DeferredResponse]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits here."""
        return self._running

    def run(self, endpoint: Endpoint, request: HttpRequest) -> DeferredResponse:
        """The endpoint's future answer, errors included."""
        answer = DeferredResponse()
        self._put(endpoint, request, answer)
        return answer

    def run_after(
        self, pending: ConstraintPending, endpoint: Endpoint, request: HttpRequest
    ) -> DeferredResponse:
        """The same, once the constraint is compiled or refused."""
        answer = DeferredResponse()
        pending.settled.add_done_callback(lambda _: self._put(endpoint, request, answer))
        return answer

    def _put(self, endpoint: Endpoint, request: HttpRequest, answer: DeferredResponse) -> None:
        with self._lock:
            self._waiting.append((endpoint, request, answer))
            start, self._running = not self._running, True
        if start:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                endpoint, request, answer = self._waiting.popleft()
            if not answer.cancelled:
                self._answer(endpoint, request, answer)

    def _answer(self, endpoint: Endpoint, request: HttpRequest, answer: DeferredResponse) -> None:
        try:
            given = endpoint(request)
        except HttpError as error:
            given = self._handler.error_response(error, request)
        except BaseException:  # this thread must continue: other requests wait for it
            log.exception("request %s: %s %s failed", request.id, request.method, request.path)
            message = f"internal error; the log has it under {request.id}"
            given = self._handler.error_response(HttpError(500, message), request)
        if isinstance(given, DeferredResponse):
            deferred = given
            answer.on_cancel(deferred.cancel)
            deferred.then(lambda response: _passed_on(response, answer))
        else:
            answer.resolve(given)


def _passed_on(response: HttpResponse, answer: DeferredResponse) -> HttpResponse:
    answer.resolve(response)
    return response
