"""HTTP/1.1 on one connection: requests to the handler, responses to the transport (RFC 9112).

Phases, and what ends each:

    READING    a request is complete → its response; the client ended → closed
    AWAITING   the deferred response is there → its response
    STREAMING  the stream is finished → READING; cancelled → broken off
    FLUSHING   the socket took everything → whatever came before
    LINGERING  the client ended, sent too much or too long → closed

A client that ends its side (half-closes) after a request still gets a response that is made at
once. While a deferred response or a stream is under way the end of its side means that it left:
the end of a TCP stream does not say which of the two it was, and generating for nobody is dear.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from cllm.http import access_log
from cllm.http.body_stream import BodyStream
from cllm.http.connection import AGAIN, DONE, NEVER, Connection, Context
from cllm.http.errors import HttpError, ProtocolError
from cllm.http.head import Head
from cllm.http.incoming import IncomingBody
from cllm.http.parser import ParserState, RequestParser
from cllm.http.poller import HANGUP, READ, WRITE
from cllm.http.request import HttpRequest
from cllm.http.response import CONTINUE, DeferredResponse, HttpResponse
from cllm.http.transport import IOV_MAX, WANT_READ, Buffer, ConnectionLost, Peer

if TYPE_CHECKING:
    from cllm.http.worker import Worker

_log = logging.getLogger("cllm.http")

# What one turn may do before other connections get theirs.
TURN_REQUESTS = 16
TURN_READS = 16  # of the worker's receive buffer
TURN_WRITES = 16  # sendmsg calls

LINGER_BYTES = 1024 * 1024  # read and dropped after an error response

LEFT = "the client left"
STOPPING = "the server is stopping"


class Phase(enum.IntEnum):
    """What the connection does now; see above."""

    READING = 0
    AWAITING = 1
    STREAMING = 2
    FLUSHING = 3
    LINGERING = 4


READING, AWAITING, STREAMING, FLUSHING, LINGERING = Phase


class Http1:
    """One connection's protocol state; run by the connection's owner only."""

    __slots__ = (
        "_backlog", "_begun", "_chunked", "_context", "_deferred", "_dropped", "_ended", "_fresh",
        "_in_head", "_incoming", "_keep", "_parser", "_peer_interest", "_pending", "_phase",
        "_refused", "_request", "_sent", "_status", "_stream", "_unsent",
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parser = RequestParser(context.config.limits)
        self._phase = READING
        self._backlog = False  # the parser may hold a complete request
        self._fresh = True  # no request yet
        self._in_head = False  # the deadline is that of a head
        self._incoming: IncomingBody | None = None  # a head is read and its body is not complete
        self._pending: list[Buffer] = []  # bytes the socket did not take yet
        # Since the write deadline was set: what the kernel held then and took since; -1: not set
        self._unsent = -1
        # The exchange under way
        self._request: HttpRequest | None = None
        self._deferred: DeferredResponse | None = None
        self._stream: BodyStream | None = None
        self._chunked = False
        self._ended = False  # the stream's end is in `_pending`, or has left
        self._keep = False  # the connection stays open after this response
        self._peer_interest = READ  # what tells that the client leaves
        self._status = 0
        self._sent = 0  # bytes of the body
        self._begun = 0.0  # time.monotonic(), where there is an access log
        self._refused = False  # the response is to bytes that were no request
        self._dropped = 0  # bytes, while lingering

    # Called by the connection

    def advance(self, connection: Connection, worker: Worker) -> int:
        phase = self._phase
        if phase is READING:
            return self._read(connection, worker)
        if connection.armed == 0:
            self._look_at_peer(connection, phase)
        step = _ADVANCE[phase]
        return step(self, connection, worker)

    def attend(self, connection: Connection, worker: Worker) -> int:
        if connection.deadline <= monotonic():
            return self._expire(connection, worker)
        if self._context.ending:
            return self._end(connection, worker)
        return self.advance(connection, worker)

    def lost(self, connection: Connection, worker: Worker) -> None:
        self._give_up(connection, worker, LEFT)

    def idle_since(self, connection: Connection) -> float | None:
        if self._phase is not READING or self._backlog:
            return None
        deadline = connection.deadline
        if deadline == NEVER or self._parser.state is not ParserState.IDLE:
            return None
        config = self._context.config
        return deadline - (config.head_timeout if self._fresh else config.keep_alive_timeout)

    def closed(self) -> None:
        self._drop_incoming()

    # Reading and answering

    def _read(self, connection: Connection, worker: Worker) -> int:
        """READING: answer what is buffered, then read more, as long as it comes.

        It stays for one more read after what seems to be all, since the next request of a client
        that is alone often is there by then; with others in the queue that read is mostly in vain.
        """
        parser = self._parser
        buffer = worker.buffer
        answered = count = 0
        for _ in range(TURN_READS):
            if not self._backlog:
                count = connection.transport.read(buffer)
                if count <= 0:
                    if count == 0:
                        return DONE  # also in the middle of a request: nobody is there to answer
                    return self._park(connection, READ if count == WANT_READ else WRITE)
                parser.feed(buffer[:count])
            self._backlog = True
            while True:
                if answered == TURN_REQUESTS:
                    return AGAIN
                try:
                    request = parser.next_request()
                except ProtocolError as error:
                    return self._refuse(connection, worker, error)
                if request is None:
                    break
                answered += 1
                interest = self._answer(connection, worker, request)
                if interest is not None:
                    return interest
            self._backlog = False
            if parser.head is not None:
                interest = self._take_in(connection, worker, parser.head)
                if interest is not None:
                    return interest
            if worker.others and not parser.wants_continue and count < len(buffer):
                return self._park(connection, READ)
            if parser.wants_continue:
                parser.continue_sent()
                self._pending = [CONTINUE]
                self._phase = FLUSHING
                interest = self._flush_out(connection, worker)
                if interest is not None:
                    return interest
        return AGAIN

    def _park(self, connection: Connection, interest: int) -> int:
        """Nothing more to read: choose the deadline of what is awaited."""
        state = self._parser.state
        config = self._context.config
        if state is ParserState.IDLE:
            if self._context.draining:
                return DONE
            self._in_head = False
            if not self._fresh:  # else it runs since the connection was accepted
                connection.deadline = monotonic() + config.keep_alive_timeout
        elif self._incoming is not None:
            self._in_head = False
            connection.deadline = self._incoming.deadline
        elif not self._in_head:  # counted from its first byte, however slowly the others come
            self._in_head = True
            connection.deadline = monotonic() + config.head_timeout
        return interest

    def _take_in(self, connection: Connection, worker: Worker, head: Head) -> int | None:
        """A part of a body is there: None to read on, or how to end."""
        incoming = self._incoming
        intake = self._context.intake
        if incoming is None:
            request = head.request()
            request.client = connection.client
            request.id = access_log.request_id(request)
            incoming = self._incoming = intake.begin(request)
            response = intake.refusal(request, head.length)
            if response is not None:
                return self._turn_away(connection, worker, incoming, response)
        try:
            incoming.grow(self._parser.buffered)
        except HttpError as error:
            response = intake.error(error, incoming.request)
            return self._turn_away(connection, worker, incoming, response)
        return None

    def _turn_away(
        self,
        connection: Connection,
        worker: Worker,
        incoming: IncomingBody,
        response: HttpResponse,
    ) -> int:
        """Answer a request of whose body the rest is not wanted, and end."""
        self._drop_incoming()
        worker.counters.requests += 1
        request = self._request = incoming.request
        request.keep_alive = False
        self._refused = True
        if self._context.config.access_log and access_log.enabled():
            self._begun = monotonic()
        connection.deadline = NEVER
        interest = self._respond(connection, worker, response)
        return DONE if interest is None else interest

    def _drop_incoming(self) -> None:
        """What is buffered will be no request."""
        self._parser.drop()
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None

    def _answer(self, connection: Connection, worker: Worker, request: HttpRequest) -> int | None:
        """One exchange; None when it is complete and the next one may begin."""
        context = self._context
        self._fresh = False
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None
        worker.counters.requests += 1
        request.client = connection.client
        request.id = access_log.request_id(request)
        self._request = request
        self._in_head = False
        if context.config.access_log and access_log.enabled():
            self._begun = monotonic()
        # Blocking is the handler's right, and its time not the client's fault.
        connection.deadline = NEVER
        if request.body and "content-encoding" in request.headers:
            response = context.intake.handle_coded(request)
        else:
            response = context.handle(request)
        if isinstance(response, DeferredResponse):
            self._deferred = response
            self._drop_body()
            self._phase = AWAITING
            self._peer_interest = READ
            response.attach(connection.schedule)
            return self._await(connection, worker)
        return self._respond(connection, worker, response)

    def _respond(
        self, connection: Connection, worker: Worker, response: HttpResponse
    ) -> int | None:
        request = self._request
        assert request is not None
        context = self._context
        body = response.body
        self._status = response.status
        self._keep = request.keep_alive and not context.draining
        if isinstance(body, BodyStream):
            return self._begin_stream(connection, worker, response, body)
        try:
            head = response.encode_head(
                keep_alive=self._keep, server=context.config.server_name, request_id=request.id
            )
        except ValueError as error:
            return self._respond(connection, worker, self._unsendable(error))
        if request.method == "HEAD" or not response.has_body:
            size = self._sent = 0
            sent = connection.transport.write((head,))
        else:
            size = self._sent = len(body)
            sent = connection.transport.write((head, body))
        if sent == len(head) + size:
            return self._complete(connection, worker)
        self._pending = _rest((head, body) if size else (head,), sent)
        self._drop_body()
        self._phase = FLUSHING
        return self._flush_out(connection, worker)

    def _drop_body(self) -> None:
        """Keep the request without its body while the client is waited for, or the response.

        The request itself stays as it is for whoever else holds it, such as a handler's thread.
        """
        if self._request is not None and self._request.body:
            self._request = self._request.without_body()

    def _unsendable(self, error: ValueError) -> HttpResponse:
        request = self._request
        assert request is not None
        _log.error("request %s: the handler's response cannot be sent: %s", request.id, error)
        text = f"internal error; the log has it under {request.id}"
        return self._context.handler.error_response(HttpError(500, text), request)

    def _complete(self, connection: Connection, worker: Worker) -> int | None:
        """The response has left: None to go on with the next request, or how to end."""
        worker.counters.count(self._status, self._sent)
        if self._begun:
            self._record(connection)
        self._request = None
        self._phase = READING
        if self._keep:
            return None
        # Closing over unread bytes resets the connection, and may take the response back.
        if self._refused or self._parser.buffered or connection.transport.probe() is Peer.SENDING:
            return self._linger(connection, worker)
        return DONE

    def _record(self, connection: Connection) -> None:
        seconds = monotonic() - self._begun
        self._begun = 0.0
        access_log.write(connection.client, self._request, self._status, self._sent, seconds)

    def _go_on(self, connection: Connection, worker: Worker, interest: int | None) -> int:
        """After an exchange that was parked: on with what was pipelined behind it."""
        if interest is not None:
            return interest
        self._backlog = True
        return self._read(connection, worker)

    # Deferred responses

    def _continue_awaiting(self, connection: Connection, worker: Worker) -> int:
        return self._go_on(connection, worker, self._await(connection, worker))

    def _await(self, connection: Connection, worker: Worker) -> int | None:
        """AWAITING: respond if the response is there."""
        deferred = self._deferred
        assert deferred is not None
        response = deferred.response
        if response is None:
            if not deferred.cancelled:
                return self._peer_interest
            reason = deferred.cancel_reason or "cancelled"
            response = self._context.handler.error_response(HttpError(503, reason), self._request)
        self._deferred = None
        return self._respond(connection, worker, response)

    # Streams

    def _begin_stream(
        self,
        connection: Connection,
        worker: Worker,
        response: HttpResponse,
        stream: BodyStream,
    ) -> int | None:
        request = self._request
        assert request is not None
        self._chunked = request.version != "HTTP/1.0"
        self._keep = self._keep and self._chunked  # else the close is what ends the body
        try:
            head = response.encode_head(
                keep_alive=self._keep,
                chunked=self._chunked,
                server=self._context.config.server_name,
                request_id=request.id,
            )
        except ValueError as error:
            stream.cancel("its response cannot be sent")
            return self._respond(connection, worker, self._unsendable(error))
        self._sent = 0
        self._pending = [head]
        if request.method == "HEAD" or not response.has_body:
            stream.cancel("the response has no body")
            self._phase = FLUSHING
            return self._flush_out(connection, worker)
        self._drop_body()
        self._stream = stream
        self._ended = False
        self._phase = STREAMING
        self._peer_interest = READ
        stream.high_water = self._context.config.high_water
        stream.attach(connection.schedule)
        return self._pull(connection, worker)

    def _continue_streaming(self, connection: Connection, worker: Worker) -> int:
        stream = self._stream
        assert stream is not None
        if stream.cancelled:
            return self._break_off(connection, worker, stream.cancel_reason or "cancelled")
        if self._pending:
            interest = self._flush(connection)
            if interest:
                return interest
        return self._go_on(connection, worker, self._pull(connection, worker))

    def _pull(self, connection: Connection, worker: Worker, *, quiet: bool = False) -> int | None:
        """STREAMING: send what the stream holds. One `take` a turn: later data wakes again.

        `quiet`: it has held nothing for so long that a ping is due where it still holds nothing.
        """
        stream = self._stream
        assert stream is not None
        if not self._ended:
            due, connection.deadline = connection.deadline, NEVER  # `_flush` sets its own
            pieces = stream.take()
            if stream.cancelled:
                return self._break_off(connection, worker, stream.cancel_reason or "cancelled")
            self._ended = stream.finished
            if quiet and not pieces and not self._ended and (ping := stream.take_ping()):
                pieces = [ping]
            self._frame(pieces)
            if self._pending:
                interest = self._flush(connection)
                if interest:
                    return interest
        if not self._ended:
            interval = self._context.config.sse_ping
            if interval and stream.ping:
                # Not after a `take` that gave nothing: tokens may come that make no event.
                restart = pieces or quiet or due == NEVER
                connection.deadline = monotonic() + interval if restart else due
            return self._peer_interest
        self._stream = None
        return self._complete(connection, worker)

    def _frame(self, pieces: list[bytes]) -> None:
        """Into `_pending`, as one chunk however many pieces; at the end the last chunk with it."""
        size = sum(map(len, pieces))
        self._sent += size
        pending = self._pending
        if not self._chunked:
            pending += pieces
            return
        if size:  # a chunk of no bytes would be the last one (RFC 9112 section 7.1)
            pending.append(b"%x\r\n" % size)
            pending += pieces
            pending.append(b"\r\n0\r\n\r\n" if self._ended else b"\r\n")
        elif self._ended:
            pending.append(b"0\r\n\r\n")

    def _break_off(self, connection: Connection, worker: Worker, reason: str) -> int:
        """End so that the client sees that the body is not complete."""
        _log.info("a response to %s:%d was aborted: %s", *connection.client, reason)
        self._give_up(connection, worker, reason)
        connection.close(abort=True)
        return DONE

    # Writing

    def _flush(self, connection: Connection) -> int:
        """Write `_pending`: 0 when all of it has left, else the interest to park with, or AGAIN."""
        pending = self._pending
        write = connection.transport.write
        interest = AGAIN
        for _ in range(TURN_WRITES):
            sent = write(pending if len(pending) <= IOV_MAX else pending[:IOV_MAX])
            if sent < 0:
                interest = READ if sent == WANT_READ else WRITE
                break
            pending = _rest(pending, sent)
            if self._unsent >= 0:
                self._unsent += sent
            if not pending:
                connection.deadline = NEVER
                self._unsent = -1
                interest = 0
                break
        self._pending = pending
        if interest and self._unsent < 0:
            self._unsent = connection.transport.unsent()
            connection.deadline = monotonic() + self._context.config.write_timeout
        if interest == WRITE and self._stream is not None:
            return WRITE | HANGUP
        return interest

    def _continue_flushing(self, connection: Connection, worker: Worker) -> int:
        return self._go_on(connection, worker, self._flush_out(connection, worker))

    def _flush_out(self, connection: Connection, worker: Worker) -> int | None:
        """FLUSHING: None when everything has left and the next request may come."""
        interest = self._flush(connection)
        if interest:
            return interest
        if self._request is None and not self._refused:
            self._phase = READING  # it was a 100 (Continue)
            return None
        return self._complete(connection, worker)

    # Ends

    def _look_at_peer(self, connection: Connection, phase: Phase) -> None:
        """The socket reported something while a response was awaited: raises ConnectionLost."""
        if phase is not AWAITING and phase is not STREAMING:
            return
        peer = connection.transport.probe()
        if peer is Peer.GONE:
            raise ConnectionLost(LEFT)
        # Further requests stay unread until this one is answered, and wake nobody meanwhile.
        self._peer_interest = HANGUP if peer is Peer.SENDING else READ

    def _refuse(self, connection: Connection, worker: Worker, error: HttpError) -> int:
        """Answer bytes that are no request, or one that does not come, and end."""
        self._drop_incoming()
        response = self._context.handler.error_response(error, None)
        assert isinstance(response.body, bytes)
        server = self._context.config.server_name
        self._status = response.status
        self._sent = len(response.body)
        self._pending = [response.encode_head(keep_alive=False, server=server), response.body]
        self._keep = False
        self._refused = True
        if self._context.config.access_log and access_log.enabled():
            self._begun = monotonic()
        self._phase = FLUSHING
        connection.deadline = NEVER
        interest = self._flush_out(connection, worker)
        return DONE if interest is None else interest

    def _linger(self, connection: Connection, worker: Worker) -> int:
        """Read on for a moment, so that the client sees the response and not a reset."""
        timeout = self._context.config.linger_timeout
        if not timeout:
            return DONE
        connection.transport.shut_write()
        self._phase = LINGERING
        connection.deadline = monotonic() + timeout
        return self._drop(connection, worker)

    def _drop(self, connection: Connection, worker: Worker) -> int:
        """LINGERING: read and forget."""
        for _ in range(TURN_READS):
            count = connection.transport.read(worker.buffer)
            if count < 0:
                return READ if count == WANT_READ else WRITE
            self._dropped += count
            if count == 0 or self._dropped > LINGER_BYTES:
                return DONE
        return AGAIN

    def _expire(self, connection: Connection, worker: Worker) -> int:
        """The deadline has passed."""
        if self._phase is LINGERING:
            return DONE
        if self._phase is READING:
            state = self._parser.state
            if state is ParserState.IDLE:
                return DONE
            worker.counters.timeouts += 1
            incoming = self._incoming
            what = "head" if incoming is None else "body"
            error = HttpError(408, f"the request's {what} did not arrive in time")
            if incoming is None:
                return self._refuse(connection, worker, error)
            response = self._context.intake.error(error, incoming.request)
            return self._turn_away(connection, worker, incoming, response)
        if self._phase is STREAMING and not self._pending:
            return self._go_on(connection, worker, self._pull(connection, worker, quiet=True))
        if self._reads(connection):
            return self.advance(connection, worker)
        worker.counters.timeouts += 1
        return self._break_off(connection, worker, "the client does not read")

    def _reads(self, connection: Connection) -> bool:
        """Whether enough has left since the deadline was set; it then gets another one.

        The poller says that there is room to write only after a large part of the kernel's buffer
        has left, which takes a slow reader longer than any deadline.
        """
        config = self._context.config
        unsent = connection.transport.unsent()
        left = self._unsent - unsent
        if left < max(config.min_rate * config.write_timeout, 1):
            return False
        self._unsent = unsent
        connection.deadline = monotonic() + config.write_timeout
        return True

    def _end(self, connection: Connection, worker: Worker) -> int:
        """The grace period is over: end well what can be."""
        phase = self._phase
        if phase is READING or phase is LINGERING:
            return DONE
        if phase is AWAITING and self._deferred is not None:
            if not self._deferred.cancel(STOPPING):  # the response is there, perhaps a stream
                interest = self.advance(connection, worker)
                return self._end(connection, worker) if self._phase is STREAMING else interest
        elif phase is STREAMING and not self._ended:
            stream = self._stream
            assert stream is not None
            last = stream.end_event(STOPPING)
            stream.cancel(STOPPING)
            if not last:
                return self._break_off(connection, worker, STOPPING)
            self._keep = False
            self._ended = True
            self._frame([last])
            self._stream = None
            self._phase = FLUSHING
        return self.advance(connection, worker)

    def _give_up(self, connection: Connection, worker: Worker, reason: str) -> None:
        """Tell whoever makes the response that nobody waits for it."""
        deferred, stream = self._deferred, self._stream
        self._deferred = self._stream = None
        if self._request is not None:
            worker.counters.clients_left += 1
            if self._begun:
                self._status = access_log.CLIENT_LEFT
                self._record(connection)
            self._request = None
        self._pending = []
        if deferred is not None and not deferred.cancel(reason):
            response = deferred.response  # it was there already, and nobody took it
            if response is not None and isinstance(response.body, BodyStream):
                stream = response.body
        if stream is not None:
            stream.cancel(reason)


_ADVANCE: dict[Phase, Callable[[Http1, Connection, Worker], int]] = {
    AWAITING: Http1._continue_awaiting,
    STREAMING: Http1._continue_streaming,
    FLUSHING: Http1._continue_flushing,
    LINGERING: Http1._drop,
}


def _rest(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left after `sent` bytes; nothing is copied. A negative count is none."""
    for index, buffer in enumerate(buffers):
        size = len(buffer)
        if sent < size:
            rest = list(buffers[index:])
            if sent > 0:
                rest[0] = memoryview(buffer)[sent:]
            return rest
        sent -= size
    return []
