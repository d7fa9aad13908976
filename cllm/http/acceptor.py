"""The acceptor thread: accepts connections, checks deadlines, watches the queue."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from time import monotonic, sleep

from cllm.http.connection import Connection
from cllm.http.connection_queue import LOOK_INTERVAL, ConnectionQueue
from cllm.http.connection_room import ClientCounts, IdleConnections
from cllm.http.forwarded import TrustedProxies
from cllm.http.limits import ServerConfig
from cllm.http.long_reads import LongReads
from cllm.http.poller import READ, Poller, WakeUp, new_poller
from cllm.http.report import report, report_failure
from cllm.http.transport import Transport, shut_down

_log = logging.getLogger("cllm.http")

ACCEPT_BATCH = 64  # connections taken from one listener before other events are handled
RETRY_ACCEPT = 1.0  # s until accepting is tried again although no connection closed
AFTER_FAILURE = 0.05  # s
LONG_REST = 3600.0  # s; epoll takes no infinity

# A sweep over all connections compares deadlines: requests cost nothing for it, and 10 000
# connections take half a millisecond. A passed deadline is noticed late by this part of its length.
SWEEP_PART = 0.1
SWEEP_LEAST, SWEEP_MOST = 0.01, 1.0  # s

WARN_INTERVAL = 10.0  # s between two warnings about the same state

# The peer or its network failed before accept(2) returned. Any other error, most often EMFILE,
# would repeat at once, so accepting pauses. macOS has no ENONET.
_PEER_FAULTS = frozenset(
    (errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN, errno.EHOSTDOWN,
     getattr(errno, "ENONET", errno.EHOSTDOWN), errno.EHOSTUNREACH, errno.EOPNOTSUPP,
     errno.ENETUNREACH, errno.ETIMEDOUT, errno.EINTR)
)  # fmt: skip


class Acceptor:
    """Owns the listening sockets. `admit` creates a connection for an accepted socket."""

    def __init__(
        self,
        listeners: list[socket.socket],
        config: ServerConfig,
        poller: Poller,
        connections: dict[int, Connection],
        admit: Callable[[socket.socket, tuple[str, int]], None],
        running: Callable[[], Iterable[tuple[threading.Thread, Transport]]],
    ) -> None:
        """running: the workers that run a connection at this moment, and its transport."""
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._limit = config.max_connections
        self._idle = IdleConnections(connections)
        per_client = config.max_connections_per_client
        self.clients = ClientCounts(
            (self._limit + 1) // 2 if per_client is None else per_client,
            with_loopback=per_client is not None,
            exempt=TrustedProxies(config.trusted_proxies).trusts,
        )
        self._connections_poller = poller
        self._connections = connections
        self._admit = admit
        self._long_reads = LongReads(running)
        self._wake_up = WakeUp()
        self._poller = new_poller()
        self._poller.register(self._wake_up.fileno(), READ, once=False)
        self._poller.register(poller.fileno(), READ)
        for fd in self._listeners:
            self._poller.register(fd, READ, once=False)
        self.queue: ConnectionQueue[Connection] = ConnectionQueue(
            poller, connections, self._wake_up.set
        )
        self._sweep_interval = _sweep_interval(config)
        self._next_look = 0.0
        self._next_sweep = monotonic() + self._sweep_interval
        # A late sweep, such as after the process was stopped, waits for one interval: workers first
        # read what has arrived in time.
        self._postponed = False
        self._lock = threading.Lock()  # of the warnings and of `turned_away`
        self._next_warning = 0.0
        self._paused = False
        self._room = False  # while paused: a connection closed
        self._retry_at = 0.0  # while paused
        self._listening = True  # False: close the listeners
        self._running = True
        self.listeners_closed = threading.Event()
        self.accepted = 0
        self.reclaimed = 0  # idle connections closed for new ones
        self.turned_away = 0  # connections of clients that were at their limit

    def run(self) -> None:
        """Run the thread until `stop`."""
        while self._running:
            try:
                self._turn()
            except Exception:
                # Any error: without this thread no client could connect.
                report_failure(_log, "the acceptor failed; it continues")
                sleep(AFTER_FAILURE)
        self._close_listeners()

    def _turn(self) -> None:
        queue = self.queue
        watched = queue.watched
        if watched:
            timeout = LOOK_INTERVAL
        else:
            if queue.vacant:
                self._poller.rearm(self._connections_poller.fileno(), READ)
            timeout = self._rest()
        events = self._poller.poll(timeout)
        now = monotonic()
        for fd, _ in events:
            self._handle(fd)
        if not self._listening and self._listeners:
            self._close_listeners()
        if not watched:
            self._next_look = now + LOOK_INTERVAL
        elif now >= self._next_look:
            queue.look()
            self._long_reads.look(now)
            self._next_look = now + LOOK_INTERVAL
        if now >= self._next_sweep:
            late = now - self._next_sweep > self._sweep_interval
            self._postponed = late and not self._postponed
            if not self._postponed:
                self._sweep(now)
            self._next_sweep = now + self._sweep_interval
        if self._paused and (self._room or now >= self._retry_at):
            self._resume()

    def wake(self) -> None:
        """Make the thread check everything again. Any thread."""
        self._wake_up.set()

    def enter(self, host: str) -> bool:
        """Count a client's connection; False if the client is at its limit. Any thread."""
        if self.clients.enter(host):
            return True
        with self._lock:
            self.turned_away += 1
        self._warn("closed a connection of %s: this client is at its connection limit", host)
        return False

    def connection_closed(self, host: str) -> None:
        """There may be room for a new connection. Any thread."""
        self.clients.leave(host)
        if self._paused:
            self._room = True
            self.wake()

    def stop_listening(self) -> None:
        """Close the listening sockets; sets `listeners_closed` when done."""
        self._listening = False
        self.wake()

    def stop(self) -> None:
        """End the thread soon."""
        self._running = False
        self.wake()

    def release(self) -> None:
        """Free the descriptors, after the thread has ended."""
        self._poller.close()
        self._wake_up.close()

    def _rest(self) -> float:
        """Seconds until something is due without an event."""
        now = monotonic()
        due = self._next_sweep if self._connections else now + LONG_REST
        if self._paused:
            due = min(due, self._retry_at)
        return max(due - now, 0.0)

    def _handle(self, fd: int) -> None:
        if fd == self._wake_up.fileno():
            self._wake_up.clear()
        elif fd == self._connections_poller.fileno():
            self.queue.collect()
        else:
            self._accept(self._listeners[fd])

    # Accepting

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH):
            if self._paused:
                return
            full = len(self._connections) >= self._limit
            if full:
                now = monotonic()
                if not self._idle.found(now):
                    self._pause(f"{self._limit} connections are open", self._idle.next_look)
                    return
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _PEER_FAULTS:
                    continue
                self._pause(str(error))
                return
            host = address[0]
            if not self.enter(host):
                sock.close()
                continue
            # Only now, so that a client at its limit cannot cause others' connections to be closed.
            # If the last idle one was used at this moment, the table exceeds its limit by one.
            if full and self._idle.close_one(now):
                self.reclaimed += 1
            self.accepted += 1
            try:
                self._admit(sock, address[:2])
            except OSError as error:
                self.clients.leave(host)
                sock.close()
                self._pause(str(error))
                return

    def _pause(self, reason: str, until: float | None = None) -> None:
        self._retry_at = monotonic() + RETRY_ACCEPT if until is None else until
        self._room = False
        self._paused = True
        for fd in self._listeners:
            self._poller.forget(fd)
        self._warn("not accepting connections until one closes: %s", reason)

    def _warn(self, text: str, value: str) -> None:
        now = monotonic()
        with self._lock:
            due = now >= self._next_warning
            if due:
                self._next_warning = now + WARN_INTERVAL
        if due:
            report(_log, logging.WARNING, text, value)

    def _resume(self) -> None:
        self._paused = False
        for fd in self._listeners:
            self._poller.register(fd, READ, once=False)

    def _close_listeners(self) -> None:
        for fd, listener in self._listeners.items():
            if not self._paused:
                self._poller.forget(fd)
            shut_down(listener)
            listener.close()
        self._listeners.clear()
        self._paused = False
        self.listeners_closed.set()

    # Deadlines

    def _sweep(self, now: float) -> None:
        self._long_reads.look(now)
        for connection in list(self._connections.values()):
            if connection.deadline <= now:
                connection.attend()


def _sweep_interval(config: ServerConfig) -> float:
    # linger_timeout is left out: a second more or less does not matter there.
    shortest = min(
        config.head_timeout,
        config.body_timeout,
        config.keep_alive_timeout,
        config.write_timeout,
        config.sse_ping or SWEEP_MOST / SWEEP_PART,
    )
    return min(max(shortest * SWEEP_PART, SWEEP_LEAST), SWEEP_MOST)
