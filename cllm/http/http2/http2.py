"""HTTP/2 on one connection (RFC 9113): its turns, deadlines and end.

A turn reads, hands each complete request to its exchange, continues the exchanges that were woken,
lets the streams send in turns, and writes. Phases:

    OPEN      requests are taken
    DRAINING  the server stops: GOAWAY(2^31-1) is sent, requests on their way are still taken
    CLOSING   GOAWAY with the last stream is sent: the streams end, then the connection
    ENDED     nothing is read any more: the outbox leaves, then the connection ends

Handlers run on the worker that runs the connection: one that blocks holds the other streams.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from time import monotonic

from cllm.http.connection import AGAIN, DONE, NEVER, Connection, Context
from cllm.http.exchange import LEFT
from cllm.http.http2 import frames
from cllm.http.http2.errors import ErrorCode, Http2ConnectionError
from cllm.http.http2.guards import Guards, calm
from cllm.http.http2.inbound import DRAIN_PING, TURN_REQUESTS, Inbound
from cllm.http.http2.outbox import NO_MORE, Outbox
from cllm.http.http2.settings import greeting
from cllm.http.http2.streams import Streams
from cllm.http.lingering import linger
from cllm.http.poller import READ, WRITE
from cllm.http.transport import WANT_READ, ConnectionLost, Peer, Transport
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

TURN_READS = 16  # of the worker's receive buffer, before other connections get their turn

SETTINGS_TIMEOUT = 10.0  # s until the client has to acknowledge the server's settings

DRAIN_TIMEOUT = 1.0  # s; section 6.8: a round trip between the two GOAWAYs


class Phase(enum.IntEnum):
    """What the connection does now; see the module."""

    OPEN = 0
    DRAINING = 1
    CLOSING = 2
    ENDED = 3


OPEN, DRAINING, CLOSING, ENDED = Phase


class Http2:
    """One connection's protocol state; run by the connection's owner only."""

    __slots__ = (
        "_context", "_drain_by", "_idle_by", "_inbound", "_incomplete_by", "_last", "_outbox",
        "_phase", "_settings_by", "_streams", "_transport", "_used", "_window_by", "_window_sent",
    )  # fmt: skip

    def __init__(self, context: Context, received: bytes = b"") -> None:
        """received: what the protocol before has read of this one."""
        self._context = context
        self._phase = OPEN
        self._transport: Transport | None = None  # None before the first turn
        guards = Guards()
        self._outbox = Outbox(context.config)
        self._streams = Streams(context, self._outbox, guards)
        self._inbound = Inbound(context, self._outbox, self._streams, guards, received)
        # Deadlines, time.monotonic()
        self._settings_by = NEVER  # the client has not acknowledged them
        self._incomplete_by = NEVER  # of a frame or a header block
        self._window_by = NEVER  # the connection's window is closed
        self._window_sent = 0  # of the outbox when that deadline was set
        self._drain_by = NEVER
        self._idle_by = NEVER
        self._used = True  # there was a stream since the idle deadline was set
        self._last = 0  # the newest stream then: one may begin and end within a turn

    # Called by the connection

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        if self._phase is ENDED:
            return self._flush_out(connection, workspace)
        try:
            return self._turn(connection, workspace)
        except Http2ConnectionError as error:
            return self._fail(connection, workspace, error)

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        if self._phase is ENDED:
            self._check_reader(connection, workspace)
            return DONE if self._context.ending else self.advance(connection, workspace)
        if self._context.draining and self._phase is OPEN:
            self._drain()
        # What has arrived comes first: it may be what a deadline waits for.
        interest = self.advance(connection, workspace)
        if interest == DONE or self._phase is ENDED:
            return interest
        try:
            self._expire(connection, workspace)
        except Http2ConnectionError as error:
            return self._fail(connection, workspace, error)
        if self._context.ending:
            self._say_goodbye()
            self._streams.end(workspace.counters)
        return self.advance(connection, workspace)

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        self._phase = ENDED
        self._streams.give_up(LEFT, workspace.counters)

    def idle_since(self, connection: Connection) -> float | None:
        idle_by = self._idle_by
        if self._streams.open or self._used or idle_by == NEVER or self._phase is not OPEN:
            return None
        return idle_by - self._idle_time

    def closed(self) -> None:
        for stream in self._streams.open.values():
            stream.drop()
        # An idle connection that makes room for a new one ends as any other (section 6.8).
        transport = self._transport
        if transport is None or self._phase is not OPEN or self._outbox.size:
            return
        if transport.is_own():
            with contextlib.suppress(ConnectionLost):
                transport.write((frames.goaway(self._inbound.last, ErrorCode.NO_ERROR),))

    # A turn

    def _turn(self, connection: Connection, workspace: Workspace) -> int:
        outbox = self._outbox
        streams = self._streams
        inbound = self._inbound
        buffer = workspace.buffer
        if self._transport is None:
            self._transport = connection.transport
            outbox.put(greeting(self._context.config.limits))
            if self._context.draining:
                self._drain()
        streams.answered = 0
        for _ in range(TURN_READS):
            count = len(buffer)
            if not inbound.backlog and outbox.size < NO_MORE:
                count = connection.transport.read(buffer)
                if count == 0:
                    return self._leave(connection, workspace)
                if count > 0:
                    inbound.feed(bytes(buffer[:count]))
            if inbound.backlog and outbox.size < NO_MORE:
                inbound.take(connection, workspace)
                if inbound.drained and self._phase is DRAINING:
                    self._say_goodbye()
            if streams.ready:
                streams.wake_all(workspace.counters)
            interest = self._write(connection, workspace)
            if self._phase is CLOSING and not (streams.open or outbox.size):
                return self._close(connection, workspace)
            if interest == AGAIN or streams.answered >= TURN_REQUESTS:
                return AGAIN
            if outbox.size >= NO_MORE:
                return self._park(connection, interest)
            if not inbound.backlog and (count < 0 or (workspace.others and count < len(buffer))):
                wanted = WRITE if count < 0 and count != WANT_READ else READ
                return self._park(connection, wanted | interest)
        return AGAIN

    def _write(self, connection: Connection, workspace: Workspace) -> int:
        """Send in turns and write: 0 when nothing more can be sent, else the interest, or AGAIN."""
        outbox = self._outbox
        streams = self._streams
        for _ in range(TURN_READS):
            streams.take_turns(workspace.counters)
            interest = outbox.flush(connection)
            streams.left(workspace.counters)
            if interest:
                return interest
            if streams.begin_waiting(workspace.counters):
                continue
            if not outbox.size and (outbox.window <= 0 or not streams.sending):
                return 0
        return AGAIN

    def _park(self, connection: Connection, interest: int) -> int:
        """Nothing more to do: set the deadline of what is expected next."""
        self._renew(monotonic())
        connection.deadline = min(
            self._streams.due, self._settings_by, self._drain_by, self._incomplete_by,
            self._window_by, self._idle_by, self._outbox.write_by,
        )  # fmt: skip
        return interest

    def _renew(self, now: float) -> None:
        """Begin the deadlines of what is expected next, and end those of what has come."""
        config = self._context.config
        outbox = self._outbox
        streams = self._streams
        inbound = self._inbound
        if inbound.acknowledged:
            self._settings_by = NEVER
        elif self._settings_by == NEVER:  # counted from when they are sent
            self._settings_by = now + SETTINGS_TIMEOUT
        if not inbound.incomplete or outbox.size >= NO_MORE:  # else the server does not read
            self._incomplete_by = NEVER
        elif inbound.progressed or self._incomplete_by == NEVER:  # counted from its first byte
            self._incomplete_by = now + config.head_timeout
        inbound.progressed = False
        if outbox.window > 0 or not streams.sending:
            self._window_by = NEVER
        elif self._window_by == NEVER:
            self._window_by = now + config.write_timeout
            self._window_sent = outbox.data_sent
        if streams.open:
            self._used = True
            self._idle_by = NEVER
        elif self._used or inbound.last > self._last:
            self._used = False
            self._last = inbound.last
            self._idle_by = now + self._idle_time

    @property
    def _idle_time(self) -> float:
        """Seconds for the next request; the first one has those of a head, as in HTTP/1.1."""
        config = self._context.config
        return config.keep_alive_timeout if self._last else config.head_timeout

    # Ends

    def _expire(self, connection: Connection, workspace: Workspace) -> None:
        """Deadlines may have passed. Raises Http2ConnectionError, ConnectionLost."""
        now = monotonic()
        config = self._context.config
        outbox = self._outbox
        counters = workspace.counters
        self._check_reader(connection, workspace)
        self._renew(now)  # a connection that always has more to do does not park
        if self._settings_by <= now:
            counters.limit("settings_timeout")
            raise Http2ConnectionError(
                ErrorCode.SETTINGS_TIMEOUT, "the client has not acknowledged the settings"
            )
        if self._incomplete_by <= now:
            counters.timeouts += 1
            raise Http2ConnectionError(
                ErrorCode.PROTOCOL_ERROR, "the rest of a frame or block did not arrive in time"
            )
        if self._window_by <= now:
            if outbox.data_sent - self._window_sent < config.least_sent:
                counters.timeouts += 1
                raise calm("the connection's window stays closed", "closed_window")
            self._window_by = NEVER
        self._streams.expire(now, counters)
        if self._drain_by <= now or self._idle_by <= now:
            self._say_goodbye()

    def _check_reader(self, connection: Connection, workspace: Workspace) -> None:
        """Raise ConnectionLost if the client reads too slowly."""
        outbox = self._outbox
        if outbox.write_by <= monotonic() and not outbox.progressed(connection):
            workspace.counters.timeouts += 1
            raise ConnectionLost("the client does not read")

    def _drain(self) -> None:
        """The server stops (section 6.8). A round trip later no request is on its way."""
        self._phase = DRAINING
        self._drain_by = monotonic() + DRAIN_TIMEOUT
        self._outbox.put(frames.goaway(frames.MAX_STREAM, ErrorCode.NO_ERROR))
        self._outbox.put(frames.ping(DRAIN_PING, ack=False))

    def _say_goodbye(self) -> None:
        """No more requests; the connection ends with its last stream."""
        if self._phase is not CLOSING:
            self._phase = CLOSING
            self._inbound.closing = True
            self._drain_by = self._idle_by = NEVER
            self._outbox.put(frames.goaway(self._inbound.last, ErrorCode.NO_ERROR))

    def _fail(
        self, connection: Connection, workspace: Workspace, error: Http2ConnectionError
    ) -> int:
        """The client's error ends the connection (section 5.4.1)."""
        _log.info("the HTTP/2 connection of %s:%d ends: %s", *connection.client, error.text)
        if error.limit:
            workspace.counters.limit(error.limit)
        self._streams.drop_all(error.text, workspace.counters)
        self._outbox.put(frames.goaway(self._inbound.last, error.code, error.text))
        self._phase = ENDED
        return self._flush_out(connection, workspace)

    def _flush_out(self, connection: Connection, workspace: Workspace) -> int:
        """ENDED: send what the outbox has."""
        interest = self._outbox.flush(connection)
        self._streams.left(workspace.counters)
        return interest or linger(connection, workspace, self._context)

    def _leave(self, connection: Connection, workspace: Workspace) -> int:
        """The client has ended its side: it gets what is ready."""
        self._outbox.flush(connection)
        self._streams.left(workspace.counters)
        self._streams.give_up(LEFT, workspace.counters)
        self._phase = ENDED
        return DONE

    def _close(self, connection: Connection, workspace: Workspace) -> int:
        """CLOSING, and everything is sent."""
        self._phase = ENDED
        # A close with unread bytes resets the connection, and the last frames may be lost. Clients
        # answer DATA with WINDOW_UPDATE, which may be on its way.
        used = self._used or self._inbound.last > self._last
        if used or connection.transport.probe() is Peer.SENDING:
            return linger(connection, workspace, self._context)
        return DONE
