"""Requests that take long and must hold no worker: they run one by one on a separate thread.

Large bodies: tokenizing megabytes takes seconds, and sixteen clients with 16 MiB of text each would
keep every worker busy. Generations for which no slot is free: they wait in any case, and a thousand
that arrive at once would delay ``/health`` until all are tokenized and submitted. Constraints
that are being compiled: their requests run again once that is done. So do requests that need the
model while it is unloaded.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any

from cllm.api.tenants import tenant_of
from cllm.engine import ConstraintPending, QueueFull
from cllm.http import DeferredResponse, HttpError, HttpHandler, HttpRequest, HttpResponse
from cllm.http.incoming import BodyMemory

log = logging.getLogger("cllm.api")

LARGE = 256 * 1024  # bytes of a body; about 50 ms of tokenizing

WAITING_SINCE = "waiting since"
"""Where in a request's context it says when it first came to a lane (`time.monotonic()`)."""

AWAITED = "constraints awaited"
"""Where it has the constraints that it waited for, which the engine keeps for so long."""

Answer = HttpResponse | DeferredResponse
Endpoint = Callable[[HttpRequest], Answer]


def check_displaced(request: HttpRequest) -> None:
    """Raise QueueFull if the constraint that a request waited for gave way to another tenant's."""
    for settled in request.context.get(AWAITED, ())[-1:]:
        if settled.done() and not settled.cancelled():
            error = settled.exception()
            if isinstance(error, QueueFull):
                raise error


class _Waiting:
    """A request on its way. request: None once it runs or its client has left."""

    __slots__ = ("answer", "endpoint", "request", "tenant")

    def __init__(self, endpoint: Endpoint, request: HttpRequest) -> None:
        self.answer = DeferredResponse()
        self.endpoint = endpoint
        self.request: HttpRequest | None = request
        self.tenant = tenant_of(request)


class Lane:
    """Runs endpoints one after the other; tenants take turns.

    Its thread exists while requests wait.
    """

    __slots__ = ("_handler", "_lock", "_memory", "_name", "_running", "_waiting")

    def __init__(self, handler: HttpHandler, name: str, memory: BodyMemory) -> None:
        """name: of the thread. memory: for the bodies of those that wait, here and elsewhere."""
        self._handler = handler
        self._name = name
        self._memory = memory
        self._lock = threading.Lock()
        self._running = False
        self._waiting: OrderedDict[str, dict[_Waiting, None]] = OrderedDict()  # by tenant

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits here."""
        return self._running

    def run(self, endpoint: Endpoint, request: HttpRequest) -> DeferredResponse:
        """What the endpoint will answer, errors included. Raises HttpError 503."""
        waiting = self._enter(endpoint, request)
        self._put(waiting)
        return waiting.answer

    def run_after(
        self, pending: ConstraintPending, endpoint: Endpoint, request: HttpRequest
    ) -> DeferredResponse:
        """The same, once the constraint is compiled or refused."""
        request.context.setdefault(AWAITED, []).append(pending.settled)
        answer = self.run_when(pending.settled, endpoint, request)
        answer.on_cancel(lambda _: pending.leave())
        return answer

    def run_when(
        self, settled: Future[Any], endpoint: Endpoint, request: HttpRequest
    ) -> DeferredResponse:
        """The same, once the future is done."""
        waiting = self._enter(endpoint, request)
        settled.add_done_callback(lambda _: self._put(waiting))
        return waiting.answer

    def _enter(self, endpoint: Endpoint, request: HttpRequest) -> _Waiting:
        self._memory.take(len(request.body))
        request.context.setdefault(WAITING_SINCE, monotonic())
        waiting = _Waiting(endpoint, request)
        waiting.answer.on_cancel(lambda _: self._leave(waiting))
        return waiting

    def _leave(self, waiting: _Waiting) -> HttpRequest | None:
        """It waits no longer; return its request, unless it has left before."""
        with self._lock:
            request, waiting.request = waiting.request, None
            others = self._waiting.get(waiting.tenant)
            if others is not None and waiting in others:
                del others[waiting]
                if not others:
                    del self._waiting[waiting.tenant]
        if request is not None:
            self._memory.take(-len(request.body))
        return request

    def _put(self, waiting: _Waiting) -> None:
        with self._lock:
            if waiting.request is None:
                return
            self._waiting.setdefault(waiting.tenant, {})[waiting] = None
            start, self._running = not self._running, True
        if start:
            try:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            except RuntimeError as error:  # no thread is to be had
                self._give_up(error)

    def _give_up(self, error: RuntimeError) -> None:
        log.error("%s cannot start: %s", self._name, error)
        with self._lock:
            self._running = False
            stranded = [waiting for others in self._waiting.values() for waiting in others]
        for waiting in stranded:
            request = self._leave(waiting)
            if request is not None:
                fault = HttpError(503, f"{error}; try again soon", [("Retry-After", "1")])
                waiting.answer.resolve(self._handler.error_response(fault, request))

    def _next(self) -> _Waiting | None:
        """The oldest of the tenant whose turn it is; None: the thread is to end."""
        with self._lock:
            if not self._waiting:
                self._running = False
                return None
            tenant = next(iter(self._waiting))
            self._waiting.move_to_end(tenant)
            return next(iter(self._waiting[tenant]))

    def _work(self) -> None:
        while (waiting := self._next()) is not None:
            try:
                request = self._leave(waiting)
                if request is not None:
                    self._answer(waiting.endpoint, request, waiting.answer)
            except BaseException:  # this thread must go on: others wait for it
                log.exception("%s failed; it goes on", self._name)

    def _answer(self, endpoint: Endpoint, request: HttpRequest, answer: DeferredResponse) -> None:
        awaited = len(request.context.get(AWAITED, ()))
        try:
            given = endpoint(request)
        except HttpError as error:
            given = self._handler.error_response(error, request)
        except BaseException:  # this thread must continue: other requests wait for it
            log.exception("request %s: %s %s failed", request.id, request.method, request.path)
            message = f"internal error; see the log for request {request.id}"
            given = self._handler.error_response(HttpError(500, message), request)
        if awaited and len(request.context[AWAITED]) == awaited:  # it does not wait for another
            del request.context[AWAITED]
        if isinstance(given, DeferredResponse):
            deferred = given
            answer.on_cancel(deferred.cancel)
            deferred.then(lambda response: _passed_on(response, answer))
        else:
            answer.resolve(given)


def _passed_on(response: HttpResponse, answer: DeferredResponse) -> HttpResponse:
    answer.resolve(response)
    return response
