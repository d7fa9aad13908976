"""HTTP/1.1 on one connection (RFC 9112); over 400 lines, since its phases are one state machine.

Requests go to the handler, responses to the transport. Phases, and what ends each:

    READING    a request is complete → its response; the client ended → closed
    AWAITING   the deferred response is given → its response
    STREAMING  the stream is finished → READING; cancelled → connection aborted
    FLUSHING   the socket took everything → the phase before
    LINGERING  the client ended, sent too much or too long → closed

A client that half-closes after a request still gets a response that is ready at once. During a
deferred response or a stream a half-close counts as leaving: TCP does not tell the two apart, and
generating text that no client reads is expensive.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from time import monotonic

from cllm.http import access_log
from cllm.http.body_stream import BodyStream
from cllm.http.connection import AGAIN, DONE, NEVER, Connection, Context
from cllm.http.deferred import DeferredResponse
from cllm.http.errors import HttpError, ProtocolError
from cllm.http.head import Head
from cllm.http.incoming import IncomingBody
from cllm.http.outgoing import Outgoing, rest
from cllm.http.parser import ParserState, RequestParser
from cllm.http.poller import HANGUP, READ, WRITE
from cllm.http.request import HttpRequest
from cllm.http.response import CONTINUE, HttpResponse
from cllm.http.transport import WANT_READ, ConnectionLost, Peer
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

# Limits of one turn, after which other connections get theirs.
TURN_REQUESTS = 16
TURN_READS = 16  # of the worker's receive buffer

LINGER_BYTES = 1024 * 1024  # read and dropped after an error response

LEFT = "the client left"
STOPPING = "the server is stopping"


class Phase(enum.IntEnum):
    """What the connection does now; see the module."""

    READING = 0
    AWAITING = 1
    STREAMING = 2
    FLUSHING = 3
    LINGERING = 4


READING, AWAITING, STREAMING, FLUSHING, LINGERING = Phase


class Http1:
    """One connection's protocol state; run by the connection's owner only."""

    __slots__ = (
        "_backlog", "_begun", "_context", "_deferred", "_dropped", "_ended", "_fresh", "_in_head",
        "_incoming", "_keep", "_outgoing", "_parser", "_peer_interest", "_phase", "_refused",
        "_request", "_sent", "_status", "_stream",
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parser = RequestParser(context.config.limits)
        self._phase = READING
        self._backlog = False  # the parser may hold a complete request
        self._fresh = True  # no request yet
        self._in_head = False  # the deadline is that of a head
        self._incoming: IncomingBody | None = None  # a head is read and its body is not complete
        self._outgoing = Outgoing(context.config)
        # The exchange under way
        self._request: HttpRequest | None = None
        self._deferred: DeferredResponse | None = None
        self._stream: BodyStream | None = None
        self._ended = False  # the stream's end is in `_outgoing`, or has left
        self._keep = False  # the connection stays open after this response
        self._peer_interest = READ  # the interest that shows that the client leaves
        self._status = 0
        self._sent = 0  # bytes of the body
        self._begun = 0.0  # time.monotonic(), where there is an access log
        self._refused = False  # the response refuses bytes that are no complete request
        self._dropped = 0  # bytes, while lingering

    # Called by the connection

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        phase = self._phase
        if phase is READING:
            return self._read(connection, workspace)
        if connection.armed == 0:
            self._look_at_peer(connection, phase)
        step = _ADVANCE[phase]
        return step(self, connection, workspace)

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        if connection.deadline <= monotonic():
            return self._expire(connection, workspace)
        if self._context.ending:
            return self._end(connection, workspace)
        return self.advance(connection, workspace)

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        self._give_up(connection, workspace, LEFT)

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

    def _read(self, connection: Connection, workspace: Workspace) -> int:
        """READING: answer what is buffered, then read on until nothing comes.

        With no other connection in the queue it reads once more after the last request: the next
        one has often arrived by then. With others waiting that read rarely finds anything.
        """
        parser = self._parser
        buffer = workspace.buffer
        answered = count = 0
        for _ in range(TURN_READS):
            if not self._backlog:
                count = connection.transport.read(buffer)
                if count <= 0:
                    if count == 0:
                        return DONE  # even in the middle of a request: the client has left
                    return self._park(connection, READ if count == WANT_READ else WRITE)
                parser.feed(buffer[:count])
            self._backlog = True
            while True:
                if answered == TURN_REQUESTS:
                    return AGAIN
                try:
                    request = parser.next_request()
                except ProtocolError as error:
                    return self._refuse(connection, workspace, error)
                if request is None:
                    break
                answered += 1
                interest = self._answer(connection, workspace, request)
                if interest is not None:
                    return interest
            self._backlog = False
            if parser.head is not None:
                interest = self._take_in(connection, workspace, parser.head)
                if interest is not None:
                    return interest
            if workspace.others and not parser.wants_continue and count < len(buffer):
                return self._park(connection, READ)
            if parser.wants_continue:
                parser.continue_sent()
                self._outgoing.pending = [CONTINUE]
                self._phase = FLUSHING
                interest = self._flush_out(connection, workspace)
                if interest is not None:
                    return interest
        return AGAIN

    def _park(self, connection: Connection, interest: int) -> int:
        """Nothing more to read: set the deadline of what is expected next."""
        state = self._parser.state
        config = self._context.config
        if state is ParserState.IDLE:
            if self._context.draining:
                return DONE
            self._in_head = False
            if not self._fresh:  # else it counts from the accept
                connection.deadline = monotonic() + config.keep_alive_timeout
        elif self._incoming is not None:
            self._in_head = False
            connection.deadline = self._incoming.deadline
        elif not self._in_head:  # counted from the first byte of the head
            self._in_head = True
            connection.deadline = monotonic() + config.head_timeout
        return interest

    def _take_in(self, connection: Connection, workspace: Workspace, head: Head) -> int | None:
        """A part of a body has arrived: None to read on, or how to end."""
        incoming = self._incoming
        intake = self._context.intake
        if incoming is None:
            request = head.request()
            request.client = connection.client
            request.id = access_log.request_id(request)
            incoming = self._incoming = intake.begin(request)
            response = intake.refusal(request, head.length)
            if response is not None:
                return self._turn_away(connection, workspace, incoming, response)
        try:
            incoming.grow(self._parser.buffered)
        except HttpError as error:
            response = intake.error(error, incoming.request)
            return self._turn_away(connection, workspace, incoming, response)
        # Also where it does not park: a body that always has more to read has this deadline too.
        connection.deadline = incoming.deadline
        return None

    def _turn_away(
        self,
        connection: Connection,
        workspace: Workspace,
        incoming: IncomingBody,
        response: HttpResponse,
    ) -> int:
        """Respond to a request without reading the rest of its body, and end."""
        self._drop_incoming()
        workspace.counters.requests += 1
        request = self._request = incoming.request
        request.keep_alive = False
        self._refused = True
        if self._context.config.access_log and access_log.enabled():
            self._begun = monotonic()
        connection.deadline = NEVER
        interest = self._respond(connection, workspace, response)
        return DONE if interest is None else interest

    def _drop_incoming(self) -> None:
        """Drop what is buffered: it will not become a request."""
        self._parser.drop()
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None

    def _answer(
        self, connection: Connection, workspace: Workspace, request: HttpRequest
    ) -> int | None:
        """One exchange; None when it is complete and the next one may begin."""
        context = self._context
        self._fresh = False
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None
        workspace.counters.requests += 1
        request.client = connection.client
        request.id = access_log.request_id(request)
        self._request = request
        self._in_head = False
        if context.config.access_log and access_log.enabled():
            self._begun = monotonic()
        # Handlers may block, and that time does not count against the client.
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
            return self._await(connection, workspace)
        return self._respond(connection, workspace, response)

    def _respond(
        self, connection: Connection, workspace: Workspace, response: HttpResponse
    ) -> int | None:
        request = self._request
        assert request is not None
        context = self._context
        body = response.body
        self._status = response.status
        self._keep = request.keep_alive and not context.draining
        if isinstance(body, BodyStream):
            return self._begin_stream(connection, workspace, response, body)
        try:
            head = response.encode_head(
                keep_alive=self._keep, server=context.config.server_name, request_id=request.id
            )
        except ValueError as error:
            return self._respond(connection, workspace, self._unsendable(error))
        if request.method == "HEAD" or not response.has_body:
            size = self._sent = 0
            sent = connection.transport.write((head,))
        else:
            size = self._sent = len(body)
            sent = connection.transport.write((head, body))
        if sent == len(head) + size:
            return self._complete(connection, workspace)
        self._outgoing.pending = rest((head, body) if size else (head,), sent)
        self._drop_body()
        self._phase = FLUSHING
        return self._flush_out(connection, workspace)

    def _drop_body(self) -> None:
        """Keep the request without its body while waiting for the client or for the response.

        Other holders of the request, such as a handler's thread, keep the body.
        """
        if self._request is not None and self._request.body:
            self._request = self._request.without_body()

    def _unsendable(self, error: ValueError) -> HttpResponse:
        request = self._request
        assert request is not None
        _log.error("request %s: the handler's response cannot be sent: %s", request.id, error)
        text = f"internal error; see the log for request {request.id}"
        return self._context.handler.error_response(HttpError(500, text), request)

    def _complete(self, connection: Connection, workspace: Workspace) -> int | None:
        """The response is sent: None to continue with the next request, or how to end."""
        workspace.counters.count(self._status, self._sent)
        if self._begun:
            self._record(connection)
        self._request = None
        self._phase = READING
        if self._keep:
            return None
        # A close with unread bytes resets the connection, and the response may be lost.
        if self._refused or self._parser.buffered or connection.transport.probe() is Peer.SENDING:
            return self._linger(connection, workspace)
        return DONE

    def _record(self, connection: Connection) -> None:
        seconds = monotonic() - self._begun
        self._begun = 0.0
        access_log.write(connection.client, self._request, self._status, self._sent, seconds)

    def _go_on(self, connection: Connection, workspace: Workspace, interest: int | None) -> int:
        """After an exchange that was parked: continue with the requests pipelined behind it."""
        if interest is not None:
            return interest
        self._backlog = True
        return self._read(connection, workspace)

    # Deferred responses

    def _continue_awaiting(self, connection: Connection, workspace: Workspace) -> int:
        return self._go_on(connection, workspace, self._await(connection, workspace))

    def _await(self, connection: Connection, workspace: Workspace) -> int | None:
        """AWAITING: send the response if it is given."""
        deferred = self._deferred
        assert deferred is not None
        response = deferred.response
        if response is None:
            if not deferred.cancelled:
                return self._peer_interest
            reason = deferred.cancel_reason or "cancelled"
            response = self._context.handler.error_response(HttpError(503, reason), self._request)
        self._deferred = None
        return self._respond(connection, workspace, response)

    # Streams

    def _begin_stream(
        self,
        connection: Connection,
        workspace: Workspace,
        response: HttpResponse,
        stream: BodyStream,
    ) -> int | None:
        request = self._request
        assert request is not None
        outgoing = self._outgoing
        outgoing.chunked = chunked = request.version != "HTTP/1.0"
        self._keep = self._keep and chunked  # else the close ends the body
        try:
            head = response.encode_head(
                keep_alive=self._keep,
                chunked=chunked,
                server=self._context.config.server_name,
                request_id=request.id,
            )
        except ValueError as error:
            stream.cancel("its response cannot be sent")
            return self._respond(connection, workspace, self._unsendable(error))
        self._sent = 0
        outgoing.pending = [head]
        if request.method == "HEAD" or not response.has_body:
            stream.cancel("the response has no body")
            self._phase = FLUSHING
            return self._flush_out(connection, workspace)
        self._drop_body()
        self._stream = stream
        self._ended = False
        self._phase = STREAMING
        self._peer_interest = READ
        stream.high_water = self._context.config.high_water
        stream.attach(connection.schedule)
        return self._pull(connection, workspace)

    def _continue_streaming(self, connection: Connection, workspace: Workspace) -> int:
        stream = self._stream
        assert stream is not None
        if stream.cancelled:
            return self._break_off(connection, workspace, stream.cancel_reason or "cancelled")
        if self._outgoing.pending:
            interest = self._outgoing.flush(connection)
            if interest:
                return _or_leaves(interest)
        return self._go_on(connection, workspace, self._pull(connection, workspace))

    def _pull(
        self, connection: Connection, workspace: Workspace, *, quiet: bool = False
    ) -> int | None:
        """STREAMING: send what the stream holds. One `take` a turn: later data wakes again.

        quiet: the stream has been empty so long that a ping is due if it still is.
        """
        stream = self._stream
        assert stream is not None
        if not self._ended:
            due, connection.deadline = connection.deadline, NEVER  # `flush` sets its own
            pieces = stream.take()
            if stream.cancelled:
                return self._break_off(connection, workspace, stream.cancel_reason or "cancelled")
            self._ended = stream.finished
            if quiet and not pieces and not self._ended and (ping := stream.take_ping()):
                pieces = [ping]
            outgoing = self._outgoing
            self._sent += outgoing.frame(pieces, last=self._ended)
            if outgoing.pending:
                interest = outgoing.flush(connection)
                if interest:
                    return _or_leaves(interest)
        if not self._ended:
            interval = self._context.config.sse_ping
            if interval and stream.ping:
                # Not after an empty `take`: some tokens make no event.
                restart = pieces or quiet or due == NEVER
                connection.deadline = monotonic() + interval if restart else due
            return self._peer_interest
        self._stream = None
        return self._complete(connection, workspace)

    def _break_off(self, connection: Connection, workspace: Workspace, reason: str) -> int:
        """Abort, so that the client sees that the body is incomplete."""
        _log.info("a response to %s:%d was aborted: %s", *connection.client, reason)
        self._give_up(connection, workspace, reason)
        connection.close(abort=True)
        return DONE

    # Writing

    def _continue_flushing(self, connection: Connection, workspace: Workspace) -> int:
        return self._go_on(connection, workspace, self._flush_out(connection, workspace))

    def _flush_out(self, connection: Connection, workspace: Workspace) -> int | None:
        """FLUSHING: None when everything is sent and the next request may come."""
        interest = self._outgoing.flush(connection)
        if interest:
            return interest
        if self._request is None and not self._refused:
            self._phase = READING  # it was a 100 (Continue)
            return None
        return self._complete(connection, workspace)

    # Ends

    def _look_at_peer(self, connection: Connection, phase: Phase) -> None:
        """An event came during a response: raises ConnectionLost if the client left."""
        if phase is not AWAITING and phase is not STREAMING:
            return
        peer = connection.transport.probe()
        if peer is Peer.GONE:
            raise ConnectionLost(LEFT)
        # Further requests stay unread until this one is answered, and cause no wake-ups.
        self._peer_interest = HANGUP if peer is Peer.SENDING else READ

    def _refuse(self, connection: Connection, workspace: Workspace, error: HttpError) -> int:
        """Respond to bytes that are no request, or to a head that timed out, and end."""
        self._drop_incoming()
        response = self._context.handler.error_response(error, None)
        assert isinstance(response.body, bytes)
        server = self._context.config.server_name
        self._status = response.status
        self._sent = len(response.body)
        head = response.encode_head(keep_alive=False, server=server)
        self._outgoing.pending = [head, response.body]
        self._keep = False
        self._refused = True
        if self._context.config.access_log and access_log.enabled():
            self._begun = monotonic()
        self._phase = FLUSHING
        connection.deadline = NEVER
        interest = self._flush_out(connection, workspace)
        return DONE if interest is None else interest

    def _linger(self, connection: Connection, workspace: Workspace) -> int:
        """Keep reading for a while, so that the client sees the response and not a reset."""
        timeout = self._context.config.linger_timeout
        if not timeout:
            return DONE
        connection.transport.shut_write()
        self._phase = LINGERING
        connection.deadline = monotonic() + timeout
        return self._drop(connection, workspace)

    def _drop(self, connection: Connection, workspace: Workspace) -> int:
        """LINGERING: read and discard."""
        for _ in range(TURN_READS):
            count = connection.transport.read(workspace.buffer)
            if count < 0:
                return READ if count == WANT_READ else WRITE
            self._dropped += count
            if count == 0 or self._dropped > LINGER_BYTES:
                return DONE
        return AGAIN

    def _expire(self, connection: Connection, workspace: Workspace) -> int:
        """The deadline has passed."""
        if self._phase is LINGERING:
            return DONE
        if self._phase is READING:
            state = self._parser.state
            if state is ParserState.IDLE:
                return DONE
            workspace.counters.timeouts += 1
            incoming = self._incoming
            what = "head" if incoming is None else "body"
            error = HttpError(408, f"the rest of the request's {what} did not arrive in time")
            if incoming is None:
                return self._refuse(connection, workspace, error)
            response = self._context.intake.error(error, incoming.request)
            return self._turn_away(connection, workspace, incoming, response)
        if self._phase is STREAMING and not self._outgoing.pending:
            if self._context.ending:  # the last event, not a ping: no other wake-up follows
                return self._end(connection, workspace)
            return self._go_on(connection, workspace, self._pull(connection, workspace, quiet=True))
        if self._outgoing.progressed(connection):
            again = self._end if self._context.ending else self.advance
            return again(connection, workspace)
        workspace.counters.timeouts += 1
        return self._break_off(connection, workspace, "the client does not read")

    def _end(self, connection: Connection, workspace: Workspace) -> int:
        """The grace period is over: end what is in flight, in an orderly way where possible."""
        phase = self._phase
        if phase is READING or phase is LINGERING:
            return DONE
        if phase is AWAITING and self._deferred is not None:
            if not self._deferred.cancel(
                STOPPING
            ):  # the response is given already, perhaps a stream
                interest = self.advance(connection, workspace)
                return self._end(connection, workspace) if self._phase is STREAMING else interest
        elif phase is STREAMING and not self._ended:
            stream = self._stream
            assert stream is not None
            last = stream.end_event(STOPPING)
            stream.cancel(STOPPING)
            if not last:
                return self._break_off(connection, workspace, STOPPING)
            self._keep = False
            self._ended = True
            self._sent += self._outgoing.frame([last], last=True)
            self._stream = None
            self._phase = FLUSHING
        return self.advance(connection, workspace)

    def _give_up(self, connection: Connection, workspace: Workspace, reason: str) -> None:
        """Cancel the response in flight: the client no longer waits for it."""
        deferred, stream = self._deferred, self._stream
        self._deferred = self._stream = None
        if self._request is not None:
            workspace.counters.clients_left += 1
            if self._begun:
                self._status = access_log.CLIENT_LEFT
                self._record(connection)
            self._request = None
        self._outgoing.pending = []
        if deferred is not None and not deferred.cancel(reason):
            response = deferred.response  # it was given already, and not taken
            if response is not None and isinstance(response.body, BodyStream):
                stream = response.body
        if stream is not None:
            stream.cancel(reason)


_ADVANCE: dict[Phase, Callable[[Http1, Connection, Workspace], int]] = {
    AWAITING: Http1._continue_awaiting,
    STREAMING: Http1._continue_streaming,
    FLUSHING: Http1._continue_flushing,
    LINGERING: Http1._drop,
}


def _or_leaves(interest: int) -> int:
    """A stream's interest to park with, which also reports a client that leaves unread data."""
    return WRITE | HANGUP if interest == WRITE else interest
