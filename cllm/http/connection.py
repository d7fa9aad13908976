"""One connection: which thread runs it, what wakes it, how it ends. The protocol does the rest.

Invariant: at most one thread runs a connection, and every wake-up (socket, response, deadline,
stop) is a call of `schedule`, or of `queue` and a push, so that no wake-up is lost.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from cllm.http.access_log import AccessLog
from cllm.http.intake import Intake
from cllm.http.limits import ServerConfig
from cllm.http.poller import Poller
from cllm.http.report import report, report_failure
from cllm.http.transport import ConnectionLost, Peer, Transport
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

NEVER = float("inf")  # a deadline that does not pass

# What `advance` gives instead of an interest of the poller.
DONE = 0  # the connection is to be closed
AGAIN = -1  # there is more to do; other connections first
HOLD = -2  # a whole response is ready, which is to leave together with others


class Schedule(enum.IntEnum):
    """Who owns the connection."""

    IDLE = 0  # no thread: parked
    QUEUED = 1  # the queue
    RUNNING = 2  # a worker, the acceptor that creates it, or the queue, after HOLD
    RUNNING_AGAIN = 3  # the same, and a wake-up came meanwhile


IDLE, QUEUED, RUNNING, RUNNING_AGAIN = Schedule

# A change to QUEUED puts the connection into the queue:
#                  `schedule`       `_finish`
#   IDLE           QUEUED           –
#   QUEUED         –                –
#   RUNNING        RUNNING_AGAIN    IDLE
#   RUNNING_AGAIN  –                QUEUED


class Context:
    """What the connections of one server share."""

    __slots__ = (
        "access_log", "closed", "config", "connections", "draining", "ending", "handle", "handler",
        "hold", "intake", "poller", "push",
    )  # fmt: skip

    def __init__(
        self,
        intake: Intake,
        config: ServerConfig,
        poller: Poller,
        connections: dict[int, Connection],
        push: Callable[[Connection], None],
        closed: Callable[[Connection], None],
        hold: Callable[[Connection], None],
        access_log: AccessLog | None = None,
    ) -> None:
        self.access_log = access_log
        self.handler = intake.handler
        self.intake = intake
        self.handle = intake.handle
        self.config = config
        self.poller = poller
        self.connections = connections  # by file descriptor
        self.push = push
        self.hold = hold  # after HOLD
        self.closed = closed  # called after each close
        self.draining = False  # the server stops: responses close their connection
        self.ending = False  # the grace period has passed: requests in flight are ended


class ConnectionProtocol(Protocol):
    """HTTP/1.1, or another protocol of a connection. Run by the owner only."""

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        """Do what is possible without waiting. Raises ConnectionLost.

        Returns an interest to park with, DONE, AGAIN or HOLD.
        """

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        """The same after a deadline has passed or the server has begun to stop."""

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        """The connection broke, or the protocol failed: cancel the request in flight."""

    def idle_since(self, connection: Connection) -> float | None:
        """When it began to wait for a request (`time.monotonic()`); None if it does not wait.

        For any thread; the value may be out of date at once.
        """

    def closed(self) -> None:
        """The connection is closed: release what it held."""


class Connection:
    """A transport, the protocol on it, and the schedule that says which thread runs it."""

    __slots__ = (
        "_context", "_lock", "_protocol", "_push", "_rearm", "_state", "armed", "attention",
        "client", "deadline", "fd", "transport",
    )  # fmt: skip

    def __init__(
        self,
        context: Context,
        transport: Transport,
        protocol: ConnectionProtocol,
        client: tuple[str, int],
        armed: int,
        deadline: float,
    ) -> None:
        self._context = context
        self._push = context.push
        self._rearm = context.poller.rearm
        self._protocol = protocol
        self._lock = threading.Lock()
        self._state = RUNNING
        self.transport = transport
        self.fd = transport.fileno()
        self.client = client
        # The interest registered with the poller; 0: it reported an event and is disarmed, or with
        # EDGE, more than data, which it must report again. Set before the poller is rearmed, so
        # that an event that follows at once is not overwritten.
        self.armed = armed
        self.attention = False  # a deadline passed or the server stops
        self.deadline = deadline  # time.monotonic(); checked by the acceptor

    @property
    def state(self) -> Schedule:
        return self._state

    def schedule(self) -> None:
        """Have a worker run the connection. Any thread."""
        if self.queue():
            self._push(self)

    def queue(self) -> bool:
        """The first half of `schedule`: whether the caller has to push the connection."""
        with self._lock:  # any thread: Ctrl-C on the main one would leave it taken after acquire()
            if self._state is IDLE:
                self._state = QUEUED
                return True
            if self._state is RUNNING:
                self._state = RUNNING_AGAIN
            return False  # QUEUED is not written, since `run` changes it without the lock

    def admitted(self) -> None:
        """It is registered with the poller: workers may run it. By the acceptor."""
        self._finish(again=False)

    def become(self, protocol: ConnectionProtocol) -> None:
        """Go on with another protocol, such as after a handshake. By the owner.

        The protocol before must not hold a request; it returns what the new one's `advance` gives.
        """
        self._protocol = protocol

    def attend(self) -> None:
        """Have the protocol check its deadline and whether the server stops. Any thread."""
        self.attention = True
        self.schedule()

    def run(self, workspace: Workspace) -> None:
        """By the worker that took it from the queue: until it would block. Raises nothing."""
        # Without the lock: `schedule` writes nothing while the connection is QUEUED, and a wake-up
        # before this line is one before the run.
        if self._state is QUEUED:  # after HOLD it is RUNNING, or RUNNING_AGAIN
            self._state = RUNNING
        try:
            if self.attention:
                self.attention = False
                interest = self._protocol.attend(self, workspace)
            else:
                interest = self._protocol.advance(self, workspace)
            if interest > 0:
                if self.armed != interest:
                    self.armed = interest
                    self._rearm(self.fd, interest)
            elif interest == HOLD:
                self._context.hold(self)
                return  # another worker may run it by now
            elif interest == DONE:
                self.close()
        except ConnectionLost:
            interest = self._break_off(workspace)
        except BaseException:  # SystemExit too: it would end this worker, which is not replaced
            report_failure(_log, "a connection failed and is closed: %s", self.client)
            interest = self._break_off(workspace)
        self._finish(again=interest == AGAIN)

    def _finish(self, *, again: bool) -> None:
        lock = self._lock
        lock.acquire()  # half as long as `with`; no signal handler runs on the server's threads
        idle = self._state is RUNNING and not again
        self._state = IDLE if idle else QUEUED
        lock.release()
        if not idle:
            self._push(self)

    @property
    def idle_since(self) -> float | None:
        """See ConnectionProtocol; only a hint unless called by the owner."""
        return self._protocol.idle_since(self) if self._state is IDLE else None

    def close_if_idle(self) -> bool:
        """Close it if it waits for a request and has received nothing of one. Any thread."""
        with self._lock:
            if self._state is not IDLE:
                return False
            self._state = RUNNING  # this thread owns it
        idle = self._protocol.idle_since(self) is not None and self.transport.probe() is Peer.QUIET
        if idle:
            self.close(notify=False)  # nothing ends a long read of the acceptor
        self._finish(again=False)
        return idle

    def close(self, *, abort: bool = False, notify: bool = True) -> None:
        """By the owner; closing again does nothing.

        abort: the peer sees an error, not an end. notify: see Transport.
        """
        connections = self._context.connections
        # Removed from the table first: once closed, its descriptor number may be reused. Both
        # look-ups may fail if stop() closes a connection that a stuck worker is closing.
        if connections.get(self.fd) is not self or connections.pop(self.fd, None) is None:
            return
        self.deadline = NEVER
        protocol, self._protocol = self._protocol, CLOSED
        protocol.closed()
        try:
            if abort:
                self.transport.abort()
            else:
                self.transport.close(notify=notify)
        except OSError as error:
            report(_log, logging.DEBUG, "closing %s: %s", self.client, error)
        self._context.closed(self)

    def _break_off(self, workspace: Workspace) -> int:
        """With a reset: a response that the close ends would look complete (RFC 9112 section 8)."""
        try:
            self._protocol.lost(self, workspace)
        except BaseException:
            report_failure(_log, "a cancellation failed: %s", self.client)
        self.close(abort=True)
        return DONE


class _Closed:
    """The protocol of a closed connection: late wake-ups do nothing."""

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        return DONE

    attend = advance

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        return None

    def idle_since(self, connection: Connection) -> None:
        return None

    def closed(self) -> None:
        return None


CLOSED = _Closed()
