"""One request and its response, from the handler to the access log, in any version of HTTP.

The protocol gives an `Exchange` a request and a `Sink`, which frames the response. The exchange
hands the sink what there is and then says how it stands:

    WAIT    nothing more until the wake-up: a deferred response, or a stream between two pieces
    MORE    the stream has more than the bytes that were asked for; call `advance` again
    SENT    the sink has the whole response: call `finish` when it has left
    BROKEN  the rest of the response will not come: call `cancel` and make the client see it

The protocol calls `advance` when the sink has sent all it was given, so that a slow client slows
its stream. All methods are for the thread that runs the connection.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

from cllm.http import access_log
from cllm.http.body_stream import BodyStream, IterableStream
from cllm.http.connection import NEVER, Context
from cllm.http.deferred import DeferredResponse
from cllm.http.errors import HttpError
from cllm.http.report import report
from cllm.http.request import HttpRequest
from cllm.http.response import BODYLESS, HttpResponse
from cllm.http.stats import Counters
from cllm.http.transport import Buffer

_log = logging.getLogger("cllm.http")

LEFT = "the client left"
STOPPING = "the server is stopping"


class Step(enum.Enum):
    """How an exchange stands; see the module."""

    WAIT = enum.auto()
    MORE = enum.auto()
    SENT = enum.auto()
    BROKEN = enum.auto()


WAIT, MORE, SENT, BROKEN = Step


class Sink(Protocol):
    """A protocol's framing of one response. It keeps what it is given and sends it later."""

    def head(self, response: HttpResponse, body: bytes | None) -> None:
        """Begin the response; body: the whole content to send, or None: `data` follows.

        Raises ValueError for what cannot be sent, and then keeps nothing.
        """

    def data(self, pieces: Sequence[Buffer], *, ended: bool) -> int:
        """The next pieces of the body, and whether it ends with them; returns their size."""


class Source(Protocol):
    """Where a request comes from: a connection, or a stream of it."""

    client: tuple[str, int]

    def schedule(self) -> None:
        """Have a worker call `advance` of the exchange. Any thread."""


class Exchange:
    """One request at a time; after `finish` or `cancel` it may take another."""

    __slots__ = (
        "_begun", "_context", "_deferred", "_left", "_schedule", "_stream", "client", "ping_at",
        "request", "room", "sent", "status",
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        self._context = context
        self._deferred: DeferredResponse | None = None
        self._stream: BodyStream | None = None
        self._left: Sequence[Buffer] = ()  # of the stream, more than the sink asked for
        self._schedule: Callable[[], None] | None = None
        self._begun = 0.0  # time.monotonic(), where there is an access log
        self.client = ("", 0)
        self.request: HttpRequest | None = None
        self.status = 0
        self.sent = 0  # bytes of the body
        self.ping_at = NEVER  # time.monotonic(): `advance` then sends a ping unless it has data
        # Set by a protocol whose exchanges share a bound; see BodyStream.room
        self.room: Callable[[BodyStream, int], bool] | None = None

    # Beginning

    def answer(
        self, request: HttpRequest, sink: Sink, source: Source, counters: Counters, most: int = 0
    ) -> Step:
        """Have the handler answer a complete request. Handlers may block."""
        context = self._context
        counters.requests += 1
        request.client = self.client = (
            source.client
            if context.intake.proxies is None
            else context.intake.client_of(request, source.client)
        )
        if not request.id:
            request.id = access_log.new_id()
        self.request = request
        log = context.access_log
        if log is not None and log.enabled:
            self._begun = monotonic()
        if request.body and "content-encoding" in request.headers:
            answer = context.intake.handle_coded(request)
        else:
            answer = context.handle(request)
        if isinstance(answer, HttpResponse):
            if type(answer.body) is bytes:
                return self._respond(answer, sink)
            self._schedule = source.schedule
            return self._begin(answer, sink, most)
        self._deferred = answer
        self._schedule = source.schedule
        self.drop_body()
        answer.attach(source.schedule)
        return self.advance(sink, most)

    def refuse(
        self,
        request: HttpRequest | None,
        response: HttpResponse,
        sink: Sink,
        source: Source,
        counters: Counters,
        *,
        to_head: bool = False,
    ) -> Step:
        """Answer without the handler; request: None for bytes that are no request.

        to_head: these bytes are of a HEAD request.
        """
        self.client = source.client
        if request is not None:
            self.client = self._context.intake.client_of(request, source.client)
        self.request = request
        if request is not None:
            counters.requests += 1
        log = self._context.access_log
        if log is not None and log.enabled:
            self._begun = monotonic()
        return self._respond(response, sink, to_head=to_head)

    # Going on

    def advance(self, sink: Sink, most: int = 0) -> Step:
        """Hand over what there is; of a stream about `most` bytes, 0 for no limit."""
        deferred = self._deferred
        if deferred is not None:
            response = deferred.response
            if response is None:
                if not deferred.cancelled:
                    return WAIT
                error = HttpError(503, deferred.cancel_reason or "cancelled")
                response = self._context.handler.error_response(error, self.request)
            self._deferred = None
            return self._begin(response, sink, most)
        stream = self._stream
        return SENT if stream is None else self._pull(stream, sink, most)

    def drop_body(self) -> None:
        """Keep the request without its body while the client or the response is slow.

        Other holders of the request, such as a handler's thread, keep the body.
        """
        if self.request is not None and self.request.body:
            self.request = self.request.without_body()

    def held_besides(self, stream: BodyStream) -> int:
        """Bytes of the response that wait in this exchange and in its stream, if it is another."""
        mine = self._stream
        left = sum(map(len, self._left))
        return left if mine is None or mine is stream else left + mine.pending

    @property
    def may_block(self) -> bool:
        """The next pieces come from an iterator: what there is should leave before."""
        return isinstance(self._stream, IterableStream)

    @property
    def broken(self) -> bool:
        """The stream was cancelled: what it has not given will not come."""
        return self._stream is not None and self._stream.cancelled

    @property
    def broken_by(self) -> str:
        """Why, after BROKEN."""
        stream = self._stream
        return (stream.cancel_reason if stream is not None else None) or "cancelled"

    def _begin(self, response: HttpResponse, sink: Sink, most: int) -> Step:
        """Hand over a response, or its head and the first pieces of its stream."""
        stream = response.body
        if not isinstance(stream, BodyStream):
            return self._respond(response, sink)
        request = self.request
        assert request is not None
        bodyless = request.method == "HEAD" or not response.has_body
        try:
            sink.head(response, b"" if bodyless else None)
        except ValueError as error:
            stream.cancel("its response cannot be sent")
            return self._respond(self._unsendable(error), sink)
        self.status = response.status
        self.sent = 0
        if bodyless:
            stream.cancel("the response has no body")
            return SENT
        self.drop_body()
        self._stream = stream
        self.ping_at = NEVER
        stream.high_water = self._context.config.high_water
        stream.room = self.room
        assert self._schedule is not None
        stream.attach(self._schedule)
        return self._pull(stream, sink, most)

    def _respond(self, response: HttpResponse, sink: Sink, *, to_head: bool = False) -> Step:
        """Hand over a whole response."""
        request = self.request
        body = response.body
        if request is not None:
            to_head = request.method == "HEAD"
        if to_head or response.status in BODYLESS:
            body = b""
        try:
            sink.head(response, body)  # type: ignore[arg-type]  # it refuses what is not bytes
        except ValueError as error:
            return self._respond(self._unsendable(error), sink)
        self.status = response.status
        self.sent = len(body)  # type: ignore[arg-type]
        return SENT

    def _unsendable(self, error: ValueError) -> HttpResponse:
        request = self.request
        assert request is not None
        message = "request %s: the handler's response cannot be sent: %s"
        report(_log, logging.ERROR, message, request.id, error)
        text = f"internal error; see the log for request {request.id}"
        return self._context.handler.error_response(HttpError(500, text), request)

    def _pull(self, stream: BodyStream, sink: Sink, most: int) -> Step:
        """Hand over what the stream holds. One `take` a call: later data wakes again."""
        if stream.endless and self._context.draining and not stream.finished:
            return self.end(sink)
        before = bool(self._left)
        pieces: Sequence[Buffer] = self._left or (stream.take(most) if most else stream.take())
        if stream.cancelled:
            return BROKEN
        if most:
            pieces, self._left = split(pieces, most)
        ended = stream.finished and not self._left
        # The interval counts from the last event. An empty `take` does not restart it: some tokens
        # make no event.
        if stream.ping and not ended:
            interval = self._context.config.sse_ping
            if interval:
                now = monotonic()
                due = now >= self.ping_at
                if due and not pieces and (ping := stream.take_ping()):
                    pieces = [ping]
                if pieces or due or self.ping_at == NEVER:
                    self.ping_at = now + interval
        if pieces or ended:
            self.sent += sink.data(pieces, ended=ended)
        if ended:
            self._stream = None
            return SENT
        # A wake-up for what follows the rest may have come while there was a rest.
        return MORE if self._left or before or stream.more else WAIT

    # Ends

    def finish(self, counters: Counters) -> None:
        """The whole response has left."""
        status = self.status
        counters.bytes_sent += self.sent
        counters.by_status[status] = counters.by_status.get(status, 0) + 1
        if self._begun:
            self._record()
        self.request = None

    def end(self, sink: Sink) -> Step:
        """The server stops and the grace period is over: end in an orderly way where possible."""
        if self._deferred is not None:
            self._deferred.cancel(STOPPING)  # no effect if the response is given already
            step = self.advance(sink)
            if self._stream is None or step is BROKEN:
                return step
        stream = self._stream
        if stream is None:
            return SENT
        last = stream.end_event(STOPPING)
        stream.cancel(STOPPING)
        if not last:
            return BROKEN
        self._stream = None
        left, self._left = self._left, ()
        self.sent += sink.data([*left, last], ended=True)
        return SENT

    def cancel(self, reason: str, counters: Counters) -> None:
        """The response will not be sent completely: stop the work for it."""
        deferred, stream = self._deferred, self._stream
        self._deferred = self._stream = None
        self._left = ()
        if self.request is not None:
            counters.clients_left += 1
            if self._begun:
                self.status = access_log.CLIENT_LEFT
                self._record()
            self.request = None
        if deferred is not None and not deferred.cancel(reason):
            response = deferred.response  # it was given already, and not taken
            if response is not None and isinstance(response.body, BodyStream):
                stream = response.body
        if stream is not None:
            stream.cancel(reason)

    def _record(self) -> None:
        begun, self._begun = self._begun, 0.0
        log = self._context.access_log
        assert log is not None
        log.add(self.client, self.request, self.status, self.sent, begun)


def split(pieces: Sequence[Buffer], most: int) -> tuple[Sequence[Buffer], Sequence[Buffer]]:
    """The first `most` bytes, and the rest; nothing is copied."""
    for index, piece in enumerate(pieces):
        if most == 0:
            return pieces[:index], pieces[index:]
        if len(piece) > most:
            view = memoryview(piece)
            return [*pieces[:index], view[:most]], [view[most:], *pieces[index + 1 :]]
        most -= len(piece)
    return pieces, ()
