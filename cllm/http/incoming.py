"""Incoming request bodies: checks before they are read, their memory, their minimum rate."""

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

RETRY_AFTER = 1  # s; a body at the minimum rate completes soon


class BodyMemory:
    """The bytes of all incomplete bodies. Counts received and not announced bytes, so that an
    announcement alone blocks no other client. Any thread."""

    __slots__ = ("_lock", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Count `size` more bytes; a negative number releases them.

        Raises HttpError 503, and counts nothing, if they would pass the limit.
        """
        with self._lock:
            if size > 0 and self.used + size > self.limit:
                raise self._full()
            self.used += size

    def check(self, size: int) -> None:
        """Raise HttpError 503 if `size` more bytes would pass the limit."""
        if self.used + size > self.limit:
            raise self._full()

    def _full(self) -> HttpError:
        return HttpError(
            503,
            f"the request bodies under way fill the {self.limit} bytes that the server has for "
            "them; try again soon",
            [("Retry-After", str(RETRY_AFTER))],
        )


class IncomingBody:
    """The body of one request, from its complete head to its last byte. Owner thread only."""

    __slots__ = ("_held", "_memory", "_min_rate", "_timeout", "deadline", "request")

    def __init__(self, request: HttpRequest, memory: BodyMemory, config: ServerConfig) -> None:
        self.request = request  # without its body
        self._memory = memory
        self._held = 0
        self._timeout = config.body_timeout
        self._min_rate = config.min_rate
        self.deadline = monotonic() + config.body_timeout

    def grow(self, buffered: int) -> None:
        """Note the number of bytes buffered now. Raises HttpError 503.

        Each byte extends the deadline by its time at the minimum rate, up to `body_timeout` from
        now: a body that keeps the rate may take any time.
        """
        more = buffered - self._held
        self._memory.take(more)
        self._held = buffered
        if more > 0:
            latest = monotonic() + self._timeout
            rate = self._min_rate
            self.deadline = min(self.deadline + more / rate, latest) if rate else latest

    def release(self) -> None:
        """Release the memory: the body is complete, or was given up."""
        self._memory.take(-self._held)
        self._held = 0


class Intake:
    """Checks and decoding between the connections of a server and its handler."""

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
        """The same for a body with a Content-Encoding, decoded first."""
        refusal = self._handler.before_body(request)  # no work for unauthorized requests
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
        """The refusal that the head alone requires; None: continue to read the body.

        length: of the body, if it was announced.
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
