"""Request bodies on their way in: who may send one, the memory they take, how slow they may be."""

from __future__ import annotations

import threading
from time import monotonic

from cllm.http.content_coding import check_coding, decode
from cllm.http.cors import cors
from cllm.http.errors import HttpError
from cllm.http.handler import Answer, HttpHandler
from cllm.http.limits import ServerConfig
from cllm.http.request import HttpRequest
from cllm.http.response import HttpResponse

RETRY_AFTER = 1  # s; a body that keeps the minimum rate leaves soon


class BodyMemory:
    """The bytes of all bodies that are not complete. Counts what was received, not what was
    announced, so that announcing keeps nobody out. Any thread."""

    __slots__ = ("_lock", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Count `size` more bytes (fewer where it is negative).

        Raises HttpError 503, and counts nothing, where they would pass the limit.
        """
        with self._lock:
            if size > 0 and self.used + size > self.limit:
                raise self._full()
            self.used += size

    def check(self, size: int) -> None:
        """Raise HttpError 503 where `size` more bytes would pass the limit."""
        if self.used + size > self.limit:
            raise self._full()

    def _full(self) -> HttpError:
        return HttpError(
            503,
            f"the memory for incomplete request bodies ({self.limit} bytes) is full; try again",
            [("Retry-After", str(RETRY_AFTER))],
        )


class IncomingBody:
    """The body of one request, from its complete head to its last byte. By the owner."""

    __slots__ = ("_held", "_memory", "_min_rate", "_timeout", "deadline", "request")

    def __init__(self, request: HttpRequest, memory: BodyMemory, config: ServerConfig) -> None:
        self.request = request  # without its body
        self._memory = memory
        self._held = 0
        self._timeout = config.body_timeout
        self._min_rate = config.min_rate
        self.deadline = monotonic() + config.body_timeout

    def grow(self, buffered: int) -> None:
        """Note that so many bytes are buffered now. Raises HttpError 503.

        Each byte puts the deadline off by the time that it may take at the minimum rate, up to
        `body_timeout` from now: a body that keeps the rate may take as long as it is.
        """
        more = buffered - self._held
        self._memory.take(more)
        self._held = buffered
        if more > 0:
            latest = monotonic() + self._timeout
            rate = self._min_rate
            self.deadline = min(self.deadline + more / rate, latest) if rate else latest

    def release(self) -> None:
        """It is complete, or will not be."""
        self._memory.take(-self._held)
        self._held = 0


class Intake:
    """What stands between the connections of a server and its handler."""

    def __init__(self, handler: HttpHandler, config: ServerConfig) -> None:
        self.memory = BodyMemory(config.body_memory)
        self._handler = handler
        self._config = config
        self._allow = cors(config.cors_origins) if config.cors_origins else None

    def handle(self, request: HttpRequest) -> Answer:
        """The handler's answer to a complete request; raises nothing."""
        if self._allow is None:
            return self._handler.handle_request(request)
        return self._allow(request, self._handler.handle_request)

    def handle_coded(self, request: HttpRequest) -> Answer:
        """The same for a body with a Content-Encoding, which is decoded before."""
        refusal = self._handler.before_body(request)  # no work for those who may not ask
        if refusal is None:
            try:
                decode(request, self._config.limits.body, self.memory.take)
            except HttpError as error:
                return self.error(error, request)
            return self.handle(request)
        return self._with_cors(request, refusal)

    def begin(self, request: HttpRequest) -> IncomingBody:
        """The state of a body that is not complete."""
        return IncomingBody(request, self.memory, self._config)

    def refusal(self, request: HttpRequest, length: int) -> HttpResponse | None:
        """The answer that a head alone calls for; None: go on reading the body.

        length: of the body, where it was announced.
        """
        response = self._handler.before_body(request)
        if response is not None:
            return self._with_cors(request, response)
        try:
            check_coding(request)
            self.memory.check(length)
        except HttpError as error:
            return self.error(error, request)
        return None

    def error(self, error: HttpError, request: HttpRequest) -> HttpResponse:
        """The response for an error that the handler does not see."""
        return self._with_cors(request, self._handler.error_response(error, request))

    def _with_cors(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        if self._allow is None:
            return response
        answer = self._allow(request, lambda request: response)
        assert isinstance(answer, HttpResponse)
        return answer
