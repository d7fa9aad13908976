"""A server: its sockets and threads, start and stop."""

from __future__ import annotations

import enum
import logging
import socket
import sys
import threading
import traceback
from time import monotonic
from types import TracebackType

from cllm.http.acceptor import Acceptor
from cllm.http.access_log import AccessLog
from cllm.http.certificates import Certificates, TlsConfig
from cllm.http.connection import Connection, ConnectionProtocol, Context
from cllm.http.cors import cors
from cllm.http.errors import HttpServerError
from cllm.http.handler import HttpHandler
from cllm.http.http1 import Http1
from cllm.http.http2.http2 import Http2
from cllm.http.intake import Intake
from cllm.http.limits import ServerConfig
from cllm.http.listeners import address_of, listen
from cllm.http.poller import READ, new_poller
from cllm.http.proxy_protocol import ProxyProtocol
from cllm.http.report import report
from cllm.http.stats import ServerStats, add_up
from cllm.http.tls import Handshake
from cllm.http.transport import PlainTransport, Transport, shut_down
from cllm.http.worker import Worker

_log = logging.getLogger("cllm.http")

HTTP2 = "h2"  # RFC 9113 section 3.2
ALPN = (HTTP2, "http/1.1")  # the preferred protocol first (RFC 7301)

# After the grace period: time to send the last events and 503s, and for threads to end. A handler
# that blocks longer is left running and named in the log.
ENDING_TIME = 2.0  # s
JOIN_TIME = 2.0  # s


class _State(enum.Enum):
    STOPPED = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()


class Server:
    """Serves a handler on one port. Several may run in one process; each may be started again."""

    def __init__(
        self,
        handler: HttpHandler,
        host: str = "127.0.0.1",
        port: int = 8080,
        config: ServerConfig | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        """tls: serve HTTPS, and nothing else on this port."""
        if not 0 <= port <= 65535:
            raise ValueError(f"port is {port}; give 0 to 65535, 0 for one that is free")
        self.host = host
        self.config = config or ServerConfig()
        self.tls = tls
        self._handler = handler
        self._wanted_port = port
        self._port = 0
        self._state = _State.STOPPED
        self._lock = threading.Lock()  # of the state
        self._stopped = threading.Event()
        self._empty = threading.Event()  # the last connection closed
        self._connections: dict[int, Connection] = {}
        self._workers: list[Worker] = []
        self._context: Context
        self._acceptor: Acceptor
        self._certificates: Certificates | None = None
        self._access_log: AccessLog | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """From the return of `start` until `stop` is called."""
        return self._state is _State.RUNNING

    @property
    def port(self) -> int:
        """The port in use; before the first start the one that was asked for."""
        return self._port or self._wanted_port

    @property
    def scheme(self) -> str:
        """Of its URLs: "https" with TLS, else "http"."""
        return "http" if self.tls is None else "https"

    def reload_certificates(self) -> bool:
        """Read the files of the certificates again, for new connections; False if they stay.

        The server also does so by itself when a file has changed. A file that cannot be used is
        logged, and the loaded certificates stay.
        """
        return self._certificates is not None and self._certificates.reload()

    def start(self) -> None:
        """Listen and serve; returns once clients can connect.

        Raises HttpServerError if the server already runs, the address or a certificate cannot be
        used, or the system has no more descriptors or threads.
        """
        with self._lock:
            if self._state is not _State.STOPPED:
                raise HttpServerError("the server is already running; call stop() first")
            self._certificates = None if self.tls is None else Certificates(self.tls, ALPN)
            listeners = listen(self.host, self._wanted_port, self.config.backlog)
            self._port = listeners[0].getsockname()[1]
            try:
                self._build(listeners)
            except (OSError, RuntimeError) as error:
                self._dismantle(listeners)
                raise HttpServerError(
                    f"the server cannot start: {error}; raise the limit of open files "
                    "(ulimit -n) or of threads (ulimit -u)"
                ) from error
            self._state = _State.RUNNING
        names = ", ".join(address_of(listener, self.scheme) for listener in listeners)
        report(_log, logging.INFO, "listening on %s with %d workers", names, len(self._workers))

    def _build(self, listeners: list[socket.socket]) -> None:
        self._stopped.clear()
        self._empty.clear()
        # New ones each time: a thread that an earlier stop() left running keeps the old ones.
        self._connections = {}
        self._workers = []
        self._poller = new_poller()
        self._acceptor = Acceptor(
            listeners, self.config, self._poller, self._connections, self._admit, self._running
        )
        queue = self._acceptor.queue
        origins = self.config.cors_origins
        intake = Intake(
            self._handler,
            self.config,
            cors(origins, self.config.cors_credentials) if origins else None,
        )
        self._access_log = AccessLog() if self.config.access_log else None
        self._context = Context(
            intake, self.config, self._poller, self._connections, queue.push, self._closed,
            queue.hold, self._access_log,
        )  # fmt: skip
        self._acceptor_thread = threading.Thread(
            target=self._acceptor.run, name="cllm-acceptor", daemon=True
        )
        if self._access_log is not None:
            self._access_log.start()
        for number in range(self.config.workers):
            worker = Worker(queue, number)
            queue.enter()
            worker.thread.start()
            self._workers.append(worker)
        self._acceptor_thread.start()

    def _dismantle(self, listeners: list[socket.socket]) -> None:
        """After a failed start: restore the state before it."""
        for listener in listeners:
            shut_down(listener)
            listener.close()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.queue.close()
        for worker in workers:
            worker.thread.join(JOIN_TIME)
        if self._access_log is not None:
            self._access_log.stop()

    def _running(self) -> list[tuple[threading.Thread, Transport]]:
        """The workers that run a connection at this moment, and its transport."""
        running = [(worker.thread, worker.current) for worker in self._workers]
        return [(thread, each.transport) for thread, each in running if each is not None]

    def _admit(self, sock: socket.socket, client: tuple[str, int]) -> None:
        """A connection of an accepted socket; on the acceptor's thread."""
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            sock.close()  # macOS: EINVAL where the peer has already reset the connection
            self._acceptor.clients.leave(client[0])
            return
        context = self._context
        protocol: ConnectionProtocol
        if self._certificates is None:
            protocol = Http1(context)
        else:
            protocol = Handshake(context, sock, self._certificates, self._follow)
        proxies = context.intake.proxies
        if self.config.proxy_protocol and proxies is not None:
            protocol = ProxyProtocol(context, protocol, proxies.trusts, self._acceptor.enter)
        connection = Connection(
            context,
            PlainTransport(sock),
            protocol,
            client,
            READ,
            monotonic() + self.config.head_timeout,
        )
        fd = connection.fd
        # Before the poller, which may report it at once. Until `admitted` no worker runs it: an old
        # event for the same descriptor number may still be pending.
        self._connections[fd] = connection
        try:
            self._poller.register(fd, READ)
        except OSError:
            self._connections.pop(fd, None)
            raise
        connection.admitted()

    def _follow(self, alpn: str | None) -> ConnectionProtocol:
        """The protocol after a TLS handshake."""
        return Http2(self._context) if alpn == HTTP2 else Http1(self._context)

    def _closed(self, connection: Connection) -> None:
        """A connection closed; on the thread that closed it."""
        self._acceptor.connection_closed(connection.client[0])
        if self._context.draining and not self._connections:
            self._empty.set()

    # The end

    def stop(self, grace: float | None = None) -> None:
        """Stop: refuse new connections, end requests in flight, then end every thread.

        Requests in flight have `grace` seconds (default: the configuration's); then streams end
        with their last event and deferred responses with 503. Returns when the port is free and the
        threads have ended, at the latest ENDING_TIME + JOIN_TIME after the grace period.

        On a server that does not run it does nothing; while another thread stops the server it
        waits for that. A handler may call it: it then returns at once and the server stops in the
        background, since it waits for the handler's own response too.
        """
        with self._lock:
            if self._state is _State.RUNNING:
                self._state = _State.STOPPING
                self._context.draining = True
                mine = True
            else:
                mine = False
                if self._state is _State.STOPPED:
                    return
        here = threading.current_thread()
        if any(worker.thread is here for worker in self._workers):
            if mine:
                arguments = (self.config.grace if grace is None else grace,)
                threading.Thread(target=self._stop, args=arguments, name="cllm-stop").start()
        elif mine:
            self._stop(self.config.grace if grace is None else grace)
        else:
            self._stopped.wait()

    def _stop(self, grace: float) -> None:
        try:
            self._drain(grace)
            self._end_threads()
        finally:
            with self._lock:
                self._state = _State.STOPPED
            self._stopped.set()
        report(_log, logging.INFO, "stopped")

    def _drain(self, grace: float) -> None:
        self._acceptor.stop_listening()
        self._acceptor.listeners_closed.wait(JOIN_TIME)
        self._empty.clear()  # it may have been empty before the last connections were accepted
        if self._wait_until_empty(grace):
            return
        after = f" after the grace period of {grace:g} s" if grace > 0 else ""
        left = len(self._connections)
        report(_log, logging.WARNING, "%d connections are still open%s; ending them", left, after)
        self._context.ending = True
        self._wait_until_empty(ENDING_TIME)

    def _wait_until_empty(self, seconds: float) -> bool:
        for connection in list(self._connections.values()):
            connection.attend()
        if self._connections:
            self._empty.wait(seconds)
        return not self._connections

    def _end_threads(self) -> None:
        queue = self._acceptor.queue
        queue.close()
        self._acceptor.stop()
        limit = monotonic() + JOIN_TIME
        for thread in (self._acceptor_thread, *(worker.thread for worker in self._workers)):
            thread.join(max(limit - monotonic(), 0.0))
        for connection in list(self._connections.values()):
            connection.close(abort=True)
        if self._access_log is not None:
            self._access_log.stop()
        stuck = [worker.thread for worker in self._workers if worker.thread.is_alive()]
        for thread in stuck:
            text = "%s is blocked in a handler and was not joined:\n%s"
            report(_log, logging.ERROR, text, thread.name, _stack(thread))
        if not self._acceptor_thread.is_alive():
            self._acceptor.release()
        # A thread left running uses only `queue`, finds it closed and ends.
        queue.release()
        self._poller.close()

    # Statistics

    def stats(self) -> ServerStats:
        """Counters since the start; cheap enough for every scrape."""
        workers = self._workers
        total = add_up(worker.workspace.counters for worker in workers)
        connections = len(self._connections)
        running = [worker.current for worker in workers]
        busy = len(running) - running.count(None)
        depth = len(self._acceptor.queue) if workers else 0
        return ServerStats(
            connections_open=connections,
            parked=max(connections - busy - depth, 0),
            queue_depth=depth,
            workers=len(workers),
            workers_busy=busy,
            body_bytes=self._context.intake.memory.used if workers else 0,
            accepted_total=self._acceptor.accepted if workers else 0,
            reclaimed_total=self._acceptor.reclaimed if workers else 0,
            turned_away_total=self._acceptor.turned_away if workers else 0,
            requests_total=total.requests,
            bytes_sent_total=total.bytes_sent,
            clients_left_total=total.clients_left,
            timeouts_total=total.timeouts,
            responses_by_status=total.by_status,
            http2_limits=total.http2_limits,
        )


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "(it just ended)"
