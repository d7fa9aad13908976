"""One connection: who may run it, when it is woken, how it ends. What it says is the protocol's.

The rule it lives by: at most one thread runs a connection, and every wake-up (socket, response,
deadline, stop) is a call of `schedule`, so that none is lost.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from cllm.http.intake import Intake
from cllm.http.limits import ServerConfig
from cllm.http.poller import Poller
from cllm.http.transport import ConnectionLost, Peer, Transport
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

NEVER = float("inf")  # a deadline that does not pass

# What `advance` gives instead of an interest of the poller.
DONE = 0  # the connection is to be closed
AGAIN = -1  # it could go on; others first


class Schedule(enum.IntEnum):
    """Who has the connection."""

    IDLE = 0  # nobody: parked
    QUEUED = 1  # the queue
    RUNNING = 2  # a worker, or the acceptor that makes it
    RUNNING_AGAIN = 3  # a worker, and something happened meanwhile


IDLE, QUEUED, RUNNING, RUNNING_AGAIN = Schedule

# The whole state machine; turning QUEUED puts the connection into the queue.
ON_SCHEDULE = {
    IDLE: QUEUED,
    QUEUED: QUEUED,
    RUNNING: RUNNING_AGAIN,
    RUNNING_AGAIN: RUNNING_AGAIN,
}
ON_FINISH = {RUNNING: IDLE, RUNNING_AGAIN: QUEUED}


class Context:
    """What the connections of one server share."""

    __slots__ = (
        "closed", "config", "connections", "draining", "ending", "handle", "handler", "intake",
        "poller", "push",
    )  # fmt: skip

    def __init__(
        self,
        intake: Intake,
        config: ServerConfig,
        poller: Poller,
        connections: dict[int, Connection],
        push: Callable[[Connection], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self.handler = intake.handler
        self.intake = intake
        self.handle = intake.handle
        self.config = config
        self.poller = poller
        self.connections = connections  # by file descriptor
        self.push = push
        self.closed = closed  # called after each close
        self.draining = False  # the server stops: answers close their connection
        self.ending = False  # the grace period has passed: what is under way is ended


class ConnectionProtocol(Protocol):
    """HTTP/1.1, and whatever else a connection may speak. Run by the owner only."""

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        """Do what can be done without waiting; an interest to park with, DONE or AGAIN.

        Raises ConnectionLost.
        """

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        """The same after a deadline has passed or the server has begun to stop."""

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        """The connection broke, or the protocol failed: cancel what is under way."""

    def idle_since(self, connection: Connection) -> float | None:
        """When it began to wait for a request (`time.monotonic()`); None while it does not.

        By any thread, which then may get the answer of a moment ago.
        """

    def closed(self) -> None:
        """The connection is closed: give back what it held."""


class Connection:
    """A transport, the protocol spoken on it, and who runs it."""

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
        # The interest the poller has; 0: it reported an event and is silent. Set before the poller
        # is told, so that the event which may follow at once is not overwritten.
        self.armed = armed
        self.attention = False  # a deadline passed or the server stops
        self.deadline = deadline  # time.monotonic(); compared by the acceptor

    @property
    def state(self) -> Schedule:
        return self._state

    def schedule(self) -> None:
        """Something happened: have a worker run the connection. Any thread."""
        with self._lock:
            state = self._state
            if state is not IDLE:
                self._state = ON_SCHEDULE[state]
                return
            self._state = QUEUED
        self._push(self)

    def admitted(self) -> None:
        """The poller knows it: workers may run it. By the acceptor."""
        self._finish(again=False)

    def attend(self) -> None:
        """Have the protocol look at its deadline and at whether the server stops. Any thread."""
        self.attention = True
        self.schedule()

    def run(self, workspace: Workspace) -> None:
        """By the worker that took it from the queue: until it would block. Raises nothing."""
        with self._lock:
            self._state = RUNNING
        try:
            if self.attention:
                self.attention = False
                interest = self._protocol.attend(self, workspace)
            else:
                interest = self._protocol.advance(self, workspace)
            if interest > 0 and self.armed != interest:
                self.armed = interest
                self._rearm(self.fd, interest)
            if interest == DONE:
                self.close()
        except ConnectionLost:
            interest = self._break_off(workspace)
        except BaseException:  # a SystemExit too: it would end this worker, and none replaces it
            _log.exception("a connection failed and is closed: %s", self.client)
            interest = self._break_off(workspace)
        self._finish(again=interest == AGAIN)

    def _finish(self, *, again: bool) -> None:
        with self._lock:
            state = RUNNING_AGAIN if again else self._state
            self._state = state = ON_FINISH[state]
        if state is QUEUED:
            self._push(self)

    @property
    def idle_since(self) -> float | None:
        """See ConnectionProtocol; a hint, unless the owner asks."""
        return self._protocol.idle_since(self) if self._state is IDLE else None

    def close_if_idle(self) -> bool:
        """Close it if it waits for a request of which nothing has come. Any thread."""
        with self._lock:
            if self._state is not IDLE:
                return False
            self._state = RUNNING  # this thread owns it
        idle = self._protocol.idle_since(self) is not None and self.transport.probe() is Peer.QUIET
        if idle:
            self.close()
        with self._lock:
            self._state = state = ON_FINISH[self._state]
        if state is QUEUED:
            self._push(self)
        return idle

    def close(self, *, abort: bool = False) -> None:
        """By the owner; `abort`: the peer sees an error, not an end. Closing again does nothing."""
        connections = self._context.connections
        # Out of the table first: once it is closed the descriptor may be another connection's.
        # Both may find nothing where stop() closes what a worker left behind is closing.
        if connections.get(self.fd) is not self or connections.pop(self.fd, None) is None:
            return
        self.deadline = NEVER
        protocol, self._protocol = self._protocol, CLOSED
        protocol.closed()
        try:
            if abort:
                self.transport.abort()
            else:
                self.transport.close()
        except OSError as error:
            _log.debug("closing %s: %s", self.client, error)
        self._context.closed(self)

    def _break_off(self, workspace: Workspace) -> int:
        """With a reset: a response that the close ends would look complete (RFC 9112 section 8)."""
        try:
            self._protocol.lost(self, workspace)
        except BaseException:
            _log.exception("a cancellation failed: %s", self.client)
        self.close(abort=True)
        return DONE


class _Closed:
    """What is left of a protocol: wake-ups that come late find nothing to do."""

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
