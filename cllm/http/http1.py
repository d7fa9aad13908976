"""HTTP/1.1 on one connection (RFC 9112); over 400 lines: its phases are one state machine.

Phases, and what ends each:

    READING     a request is complete → its exchange; a short response → HELD; the client ended →
                closed
    CONTINUING  the socket took the 100 (Continue) → READING
    ANSWERING   the exchange has given the whole response → FLUSHING; broken → aborted
    FLUSHING    the socket took everything → READING, or the connection ends
    HELD        it is this response's turn to leave → READING or FLUSHING

A client that half-closes after a request still gets a response that is ready at once. During a
deferred response or a stream a half-close counts as leaving: TCP does not tell the two apart, and
generating text that no client reads is expensive.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from time import monotonic

from cllm.http import access_log
from cllm.http.connection import AGAIN, DONE, HOLD, NEVER, Connection, Context
from cllm.http.errors import HttpError, ProtocolError
from cllm.http.exchange import BROKEN, LEFT, SENT, Exchange, Step
from cllm.http.head import Head
from cllm.http.http2.frames import PREFACE_LINE
from cllm.http.http2.http2 import Http2
from cllm.http.incoming import IncomingBody
from cllm.http.lingering import linger
from cllm.http.outgoing import Outgoing
from cllm.http.parser import ParserState, RequestParser
from cllm.http.poller import HANGUP, READ, WRITE
from cllm.http.request import HttpRequest
from cllm.http.response import CONTINUE, HttpResponse
from cllm.http.transport import WANT_READ, Buffer, ConnectionLost, Peer
from cllm.http.workspace import FEW, Workspace

_log = logging.getLogger("cllm.http")

# Limits of one turn, after which other connections get theirs.
TURN_REQUESTS = 16
TURN_READS = 16  # of the worker's receive buffer

_IDLE = ParserState.IDLE  # an enum's members are slow to look up in Python 3.11


class Phase(enum.IntEnum):
    """What the connection does now; see the module."""

    READING = 0
    CONTINUING = 1
    ANSWERING = 2
    FLUSHING = 3
    HELD = 4


READING, CONTINUING, ANSWERING, FLUSHING, HELD = Phase


class Http1:
    """One connection's protocol state, and the sink of its exchange; run by the owner only."""

    __slots__ = (
        "_backlog", "_context", "_exchange", "_fresh", "_in_head", "_incoming", "_keep",
        "_outgoing", "_parser", "_peer_interest", "_phase", "_refused",
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
        self._exchange = Exchange(context)
        self._keep = False  # the connection stays open after this response
        self._peer_interest = READ  # the interest that shows that the client leaves
        self._refused = False  # the response refuses bytes that are no complete request

    # Called by the connection

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        phase = self._phase
        if phase is READING:
            return self._read(connection, workspace)
        if phase is HELD:
            return self._send_held(connection, workspace)
        if phase is ANSWERING and connection.armed == 0:
            self._look_at_peer(connection)
        step = _ADVANCE[phase]
        return step(self, connection, workspace)

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        if connection.deadline <= monotonic():
            return self._expire(connection, workspace)
        if self._context.ending:
            return self._end(connection, workspace)
        return self.advance(connection, workspace)

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        self._give_up(workspace, LEFT)

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

    # Called by the exchange

    def head(self, response: HttpResponse, body: bytes | None) -> None:
        request = self._exchange.request
        config = self._context.config
        keep = chunked = False
        if request is not None:
            keep = request.keep_alive and not self._context.draining
            if type(response.body) is not bytes:  # a stream
                chunked = request.version != "HTTP/1.0"
                keep = keep and chunked  # else the close ends the body
        head = response.encode_head(
            keep_alive=keep,
            chunked=chunked,
            server=config.server_name,
            request_id=None if request is None else request.id,
        )
        self._keep = keep
        self._outgoing.chunked = chunked
        self._outgoing.begin(head, body or b"")

    def data(self, pieces: Sequence[Buffer], *, ended: bool) -> int:
        return self._outgoing.frame(pieces, last=ended)

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
                    wanted = connection.transport.read_interest if count == WANT_READ else WRITE
                    return self._park(connection, wanted)
                data = buffer[:count].tobytes()
                request = parser.known(data)
                if request is not None:
                    may_rest = count < len(buffer)  # nothing more had come
                    interest = self._answer(connection, workspace, request, may_hold=may_rest)
                    if interest is not None:
                        return interest
                    if workspace.others and may_rest:
                        return self._rest(connection, connection.transport.read_interest)
                    continue
                parser.feed(data)
                # Over TLS it is chosen by ALPN (RFC 9113 section 3.2).
                if (
                    self._fresh
                    and parser.begins_with(PREFACE_LINE)
                    and not connection.transport.encrypted
                ):
                    http2 = Http2(self._context, parser.release())
                    connection.become(http2)
                    return http2.advance(connection, workspace)
            self._backlog = True
            while True:
                if answered == TURN_REQUESTS:
                    return AGAIN
                try:
                    request = parser.next_request()
                except ProtocolError as error:
                    return self.refuse(connection, workspace, error)
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
            # Only after a read: with EDGE, bytes that came before this turn are not reported again.
            if workspace.others and 0 < count < len(buffer) and not parser.wants_continue:
                return self._park(connection, connection.transport.read_interest)
            if parser.wants_continue:
                parser.continue_sent()
                self._outgoing.begin(CONTINUE)
                self._phase = CONTINUING
                interest = self._outgoing.flush(connection)
                if interest:
                    return interest
                self._phase = READING
        return AGAIN

    def _rest(self, connection: Connection, interest: int) -> int:
        """Wait for the next request."""
        if self._context.draining:
            return DONE
        self._in_head = False
        # The first request's time counts from the accept, and that of later ones from the response
        # before: not from a wake-up without content, such as a record of TLS with a KeyUpdate.
        if connection.deadline == NEVER and not self._fresh:
            connection.deadline = monotonic() + self._context.config.keep_alive_timeout
        return interest

    def _park(self, connection: Connection, interest: int) -> int:
        """Nothing more to read: set the deadline of what is expected next."""
        state = self._parser.state
        config = self._context.config
        if state is _IDLE:
            return self._rest(connection, interest)
        if self._incoming is not None:
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
            request.client = intake.client_of(request, connection.client)
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
        incoming: IncomingBody | None,
        response: HttpResponse,
        *,
        to_head: bool = False,
    ) -> int:
        """Respond without reading on, and end; incoming: None for bytes that are no request.

        to_head: these bytes are of a HEAD request.
        """
        self._drop_incoming()
        request = None
        if incoming is not None:
            request = incoming.request
            request.keep_alive = False
        self._refused = True
        connection.deadline = NEVER
        step = self._exchange.refuse(
            request, response, self, connection, workspace.counters, to_head=to_head
        )
        interest = self._send(connection, workspace, step)
        return DONE if interest is None else interest

    def refuse(self, connection: Connection, workspace: Workspace, error: HttpError) -> int:
        """Respond to bytes that are no request, or to a head that timed out, and end."""
        response = self._context.handler.error_response(error, None)
        to_head = isinstance(error, ProtocolError) and error.to_head
        return self._turn_away(connection, workspace, None, response, to_head=to_head)

    def _drop_incoming(self) -> None:
        """Drop what is buffered: it will not become a request."""
        self._parser.drop()
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None

    def _answer(
        self,
        connection: Connection,
        workspace: Workspace,
        request: HttpRequest,
        *,
        may_hold: bool = False,
    ) -> int | None:
        """One exchange; None when it is complete and the next one may begin.

        may_hold: the response may leave together with others; nothing pipelined waits behind it.
        """
        self._fresh = False
        if self._incoming is not None:
            self._incoming.release()
            self._incoming = None
        self._in_head = False
        # Handlers may block, and that time does not count against the client.
        connection.deadline = NEVER
        self._peer_interest = READ
        step = self._exchange.answer(request, self, connection, workspace.counters)
        if (
            may_hold
            and step is SENT
            and len(workspace.others) > FEW
            and self._keep
            and self._outgoing.short
        ):
            self._phase = HELD
            return HOLD
        return self._send(connection, workspace, step)

    def _send(self, connection: Connection, workspace: Workspace, step: Step) -> int | None:
        """Send what the exchange has handed over; None when the response is complete."""
        if step is BROKEN:
            return self._break_off(connection, workspace, self._exchange.broken_by)
        outgoing = self._outgoing
        if outgoing.pending:
            interest = outgoing.flush(connection)
            if interest:
                if step is SENT:
                    self._exchange.drop_body()
                    self._phase = FLUSHING
                    return interest
                self._phase = ANSWERING
                return interest | HANGUP if interest == WRITE else interest
        if step is SENT:
            return self._complete(connection, workspace)
        self._phase = ANSWERING
        connection.deadline = self._exchange.ping_at
        return self._peer_interest

    def _complete(self, connection: Connection, workspace: Workspace) -> int | None:
        """The response is sent: None to continue with the next request, or how to end."""
        self._exchange.finish(workspace.counters)
        self._phase = READING
        if self._keep:
            return None
        # A close with unread bytes resets the connection, and the response may be lost.
        if self._refused or self._parser.buffered or connection.transport.probe() is Peer.SENDING:
            return linger(connection, workspace, self._context)
        return DONE

    def _go_on(self, connection: Connection, workspace: Workspace, interest: int | None) -> int:
        """After an exchange that was parked: continue with the requests pipelined behind it."""
        if interest is not None:
            return interest
        self._backlog = True
        return self._read(connection, workspace)

    # The phases after a wake-up

    def _continue_answering(self, connection: Connection, workspace: Workspace) -> int:
        """ANSWERING: send what the exchange has now."""
        exchange = self._exchange
        if exchange.broken:
            return self._break_off(connection, workspace, exchange.broken_by)
        if self._outgoing.pending:
            interest = self._outgoing.flush(connection)
            if interest:
                return interest | HANGUP if interest == WRITE else interest
        step = exchange.advance(self)
        return self._go_on(connection, workspace, self._send(connection, workspace, step))

    def _flush(self, connection: Connection, workspace: Workspace) -> int:
        """FLUSHING, CONTINUING: send the rest of the response, or of the 100 (Continue)."""
        interest = self._outgoing.flush(connection)
        if interest:
            return interest
        if self._phase is CONTINUING:
            self._phase = READING
            return self._go_on(connection, workspace, None)
        return self._go_on(connection, workspace, self._complete(connection, workspace))

    def _send_held(self, connection: Connection, workspace: Workspace) -> int:
        """HELD: send the response, and rest: all that had come was read before it."""
        if self._context.draining:
            self._keep = False
        interest = self._send(connection, workspace, SENT)
        if interest is not None:
            return interest
        return self._rest(connection, connection.transport.read_interest)

    # Ends

    def _look_at_peer(self, connection: Connection) -> None:
        """An event came during a response: raises ConnectionLost if the client left."""
        peer = connection.transport.probe()
        if peer is Peer.GONE:
            raise ConnectionLost(LEFT)
        # Further requests stay unread until this one is answered, and cause no wake-ups.
        self._peer_interest = HANGUP if peer is Peer.SENDING else READ

    def _break_off(self, connection: Connection, workspace: Workspace, reason: str) -> int:
        """Abort, so that the client sees that the body is incomplete."""
        _log.info("a response to %s:%d was aborted: %s", *connection.client, reason)
        self._give_up(workspace, reason)
        connection.close(abort=True)
        return DONE

    def _give_up(self, workspace: Workspace, reason: str) -> None:
        """Cancel the response in flight: the client no longer waits for it."""
        self._outgoing.drop()
        self._exchange.cancel(reason, workspace.counters)

    def _expire(self, connection: Connection, workspace: Workspace) -> int:
        """The deadline has passed."""
        if self._phase is READING:
            state = self._parser.state
            if state is ParserState.IDLE:
                return DONE
            workspace.counters.timeouts += 1
            incoming = self._incoming
            what = "head" if incoming is None else "body"
            error = HttpError(408, f"the rest of the request's {what} did not arrive in time")
            if incoming is None:
                return self.refuse(connection, workspace, error)
            response = self._context.intake.error(error, incoming.request)
            return self._turn_away(connection, workspace, incoming, response)
        if self._phase is ANSWERING and not self._outgoing.pending:  # a ping is due
            if self._context.ending:  # the last event instead: no other wake-up follows
                return self._end(connection, workspace)
            return self._continue_answering(connection, workspace)
        if self._outgoing.progressed(connection):
            again = self._end if self._context.ending else self.advance
            return again(connection, workspace)
        workspace.counters.timeouts += 1
        return self._break_off(connection, workspace, "the client does not read")

    def _end(self, connection: Connection, workspace: Workspace) -> int:
        """The grace period is over: end what is in flight, in an orderly way where possible."""
        phase = self._phase
        if phase is READING:
            return DONE
        if phase is not ANSWERING:
            return self.advance(connection, workspace)
        self._keep = False
        step = self._exchange.end(self)
        return self._go_on(connection, workspace, self._send(connection, workspace, step))


_ADVANCE: dict[Phase, Callable[[Http1, Connection, Workspace], int]] = {
    CONTINUING: Http1._flush,
    ANSWERING: Http1._continue_answering,
    FLUSHING: Http1._flush,
}
