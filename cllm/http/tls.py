"""TLS on one connection: the handshake, and the transport after it.

No thread waits: a handshake or a write that would block parks its connection. What differs from a
plain socket:

- A read gives at most one record (16 KiB). OpenSSL keeps the rest of a record that did not fit,
  which the poller does not see; so the worker's buffer must hold a record.
- A write that would block has begun its records. It must be repeated with the same bytes.
- OpenSSL reads on until it has content, so a long read is ended from outside (long_reads.py). The
  end of a connection reads too.
- There is no sendmsg: small pieces are joined, so that a head and its body are one record.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from cllm.http.certificates import Certificates
from cllm.http.client_hello import HANDSHAKE_RECORD, MOST, client_hello, server_name
from cllm.http.connection import DONE, Connection, ConnectionProtocol, Context
from cllm.http.errors import HttpError
from cllm.http.http1 import Http1
from cllm.http.poller import READ, WRITE
from cllm.http.transport import (
    NOT_READING,
    WANT_READ,
    WANT_WRITE,
    Buffer,
    ConnectionLost,
    PlainTransport,
    reset,
)
from cllm.http.workspace import RECEIVE_BUFFER, Workspace

_log = logging.getLogger("cllm.http")

RECORD = 16 * 1024  # bytes of content in one record (RFC 8446 section 5.1)
assert RECEIVE_BUFFER >= RECORD

MAX_WRITE = 64 * 1024  # bytes of one write, so that a slow reader's progress is seen

PLAIN_HTTP = "this port expects TLS; use https:// instead of http://"


class TlsTransport(PlainTransport):
    """TCP with TLS."""

    encrypted = True
    read_interest = READ  # a read gives one record; the socket may hold more
    __slots__ = ("_begun", "_read", "_tls", "_write", "reading_since")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self._tls = sock
        # Without the checks of recv_into and send, which a request would pass twice
        self._read: Callable[[int, Any], Any] = sock.read
        self._write: Callable[[Any], int] = sock.write
        self._begun: Buffer = b""  # a write that would block: it is repeated as it is
        self.reading_since = NOT_READING

    def handshake(self) -> int:
        """Go on with it: 0 when it is complete, WANT_READ or WANT_WRITE. Raises ssl.SSLError."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return WANT_READ
        except ssl.SSLWantWriteError:
            return WANT_WRITE
        return 0

    @property
    def protocol(self) -> str | None:
        """What ALPN chose."""
        return self._tls.selected_alpn_protocol()

    def read(self, buffer: memoryview) -> int:
        """As any transport; `buffer` must hold a record. An end without close_notify is an end."""
        self.reading_since = monotonic()
        try:
            return int(self._read(len(buffer), buffer))
        except ssl.SSLWantReadError:
            return WANT_READ
        except ssl.SSLWantWriteError:
            return WANT_WRITE
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0
        except BlockingIOError:  # after `shut_write`
            return WANT_READ
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        finally:
            self.reading_since = NOT_READING

    def end_read(self) -> None:
        _log.warning("reset a connection: its TLS records have no content and no end")
        reset(self._tls)

    def write(self, buffers: Sequence[Buffer]) -> int:
        """As any transport; after WANT_… the next buffers must begin with the same bytes."""
        data = self._begun
        if not data:
            data = buffers[0]
            if len(buffers) > 1 or len(data) > MAX_WRITE:
                data = join(buffers, MAX_WRITE)
        try:
            sent = self._write(data)
        except ssl.SSLWantWriteError:
            self._begun = data
            return WANT_WRITE
        except ssl.SSLWantReadError:
            self._begun = data
            return WANT_READ
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        self._begun = b""
        return sent

    def shut_write(self) -> None:
        self._notify()
        super().shut_write()
        # The socket is without TLS from here on; what it reads is only dropped.
        self._read = lambda size, buffer: self._recv_into(buffer)

    def close(self, *, notify: bool = True) -> None:
        if notify and self.is_own():
            self._notify()
        super().close()

    def _notify(self) -> None:
        """Send close_notify if there is room; the peer's is not awaited.

        Python then reads what has come, since the peer's may be there: this is a read too.
        """
        self.reading_since = monotonic()
        try:
            self._tls.unwrap()
        except (OSError, ValueError):
            return  # most often it says that the peer's has not come
        finally:
            self.reading_since = NOT_READING


def join(buffers: Sequence[Buffer], most: int) -> Buffer:
    """The first `most` bytes of them; nothing is copied if the first buffer has as many."""
    parts = []
    for buffer in buffers:
        if len(buffer) >= most:
            parts.append(memoryview(buffer)[:most])
            break
        parts.append(memoryview(buffer))
        most -= len(buffer)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Handshake:
    """The protocol of a connection until its handshake is complete.

    follow: the protocol for what ALPN chose.
    """

    __slots__ = ("_awaited", "_certificates", "_context", "_follow", "_socket", "_transport")

    def __init__(
        self,
        context: Context,
        sock: socket.socket,
        certificates: Certificates,
        follow: Callable[[str | None], ConnectionProtocol],
    ) -> None:
        self._context = context
        self._socket = sock
        self._certificates = certificates
        self._follow = follow
        self._transport: TlsTransport | None = None  # None before OpenSSL gets the first byte
        self._awaited = 0  # bytes that the socket is to hold before it counts as readable

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        try:
            transport = self._transport
            if transport is None:
                by_name = self._certificates.by_name
                first = self._socket.recv(MOST if by_name else 1, socket.MSG_PEEK)
                if not first:
                    return DONE
                if first[0] != HANDSHAKE_RECORD and first[:1].isalpha():
                    return self._refuse(connection, workspace)
                name = self._host(first) if by_name else ""
                if name is None:
                    return READ
                wrapped = self._certificates.wrap(self._socket, name)
                transport = self._transport = TlsTransport(wrapped)
                connection.transport = transport
            wanted = transport.handshake()
        except BlockingIOError:
            return READ
        except (OSError, ValueError) as error:
            _log.info("the TLS handshake of %s:%d failed: %s", *connection.client, error)
            # Here, while the traceback keeps a socket that `wrap` gave up on: its descriptor must
            # leave the table before the number is free.
            connection.close()
            return DONE
        if wanted:
            return READ if wanted == WANT_READ else WRITE
        protocol = self._follow(transport.protocol)
        connection.deadline = monotonic() + self._context.config.head_timeout
        connection.become(protocol)
        return protocol.advance(connection, workspace)

    def _host(self, data: bytes) -> str | None:
        """The host that the client names in its first bytes; None: not all have come."""
        message, needed = client_hello(data)
        # Ready with fewer than awaited: the client has ended.
        if len(data) < needed <= MOST and len(data) >= self._awaited:
            self._awaited = needed
            self._report_from(needed)
            return None
        if self._awaited:
            self._report_from(1)
        return server_name(message)

    def _report_from(self, count: int) -> None:
        """Let the poller report the socket when it holds `count` bytes, which stay in it."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    @property
    def _begun(self) -> bool:
        return self._transport is not None or self._awaited > 0

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        if connection.deadline <= monotonic():
            workspace.counters.timeouts += self._begun
            return DONE
        return DONE if self._context.draining else self.advance(connection, workspace)

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        return None

    def idle_since(self, connection: Connection) -> float | None:
        if self._begun:
            return None
        return connection.deadline - self._context.config.head_timeout

    def closed(self) -> None:
        return None

    def _refuse(self, connection: Connection, workspace: Workspace) -> int:
        """The client speaks HTTP without TLS: say so in the same way."""
        protocol = Http1(self._context)
        connection.become(protocol)
        return protocol.refuse(connection, workspace, HttpError(400, PLAIN_HTTP))
