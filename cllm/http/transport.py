"""The bytes of one connection: a plain socket, behind calls that TLS implements too."""

from __future__ import annotations

import array
import ctypes
import enum
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Sequence
from typing import Protocol

from cllm.http.poller import EDGE

Buffer = bytes | memoryview

# Returned instead of a count: the call would block until the socket is readable, or writable.
WANT_READ = -1
WANT_WRITE = -2

IOV_MAX = 1024  # buffers in one sendmsg(2); Linux's and macOS's limit

NOT_READING = float("inf")

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


class ConnectionLost(Exception):  # noqa: N818 - an ordinary event, not a failure
    """The connection broke: reset, timed out, unreachable."""


class Peer(enum.Enum):
    """The state of the peer, found without reading."""

    QUIET = enum.auto()  # connected, has sent nothing
    SENDING = enum.auto()  # connected, has sent something
    GONE = enum.auto()  # ended its side, or the connection broke


class Transport(Protocol):
    """Never blocks. Raises ConnectionLost."""

    def read(self, buffer: memoryview) -> int:
        """Bytes read into `buffer`; 0 at the end; WANT_READ or WANT_WRITE."""

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Bytes taken of at most IOV_MAX buffers, WANT_READ or WANT_WRITE.

        After WANT_… the next call must begin with the same bytes; there may be more behind them.
        """

    @property
    def read_interest(self) -> int:
        """What to park with for more bytes: EDGE where a short read has taken all there are."""

    @property
    def encrypted(self) -> bool:
        """Whether it is TLS."""

    @property
    def reading_since(self) -> float:
        """When the read in progress began (`time.monotonic()`), if it may take long. Any thread."""

    def end_read(self) -> None:
        """Reset the connection, to end a read that goes on without an end. Any thread."""

    def probe(self) -> Peer:
        """Whether the peer is still connected."""

    def is_own(self) -> bool:
        """False in a forked child: the connection is its parent's, so nothing may be sent on it."""

    def unsent(self) -> int:
        """Bytes written that the peer has not acknowledged; 0 if the system does not say."""

    def shut_write(self) -> None:
        """End this side, so that the peer sees the end of the written data."""

    def close(self, *, notify: bool = True) -> None:
        """End both directions; notify: say so with TLS's close_notify first, which may read."""

    def abort(self) -> None:
        """Close so that the peer sees an error instead of an end."""

    def fileno(self) -> int: ...


class PlainTransport:
    """TCP without encryption."""

    __slots__ = ("_process", "_recv_into", "_send", "_sendmsg", "_socket", "fileno")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._process = os.getpid()  # a forked child must not end its parent's connections
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._sendmsg = sock.sendmsg
        self.fileno = sock.fileno

    def read(self, buffer: memoryview) -> int:
        try:
            return self._recv_into(buffer)
        except BlockingIOError:
            return WANT_READ
        except OSError as error:
            raise ConnectionLost(str(error)) from None

    def write(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self._send(buffers[0]) if len(buffers) == 1 else self._sendmsg(buffers)
        except BlockingIOError:
            return WANT_WRITE
        except OSError as error:
            raise ConnectionLost(str(error)) from None

    encrypted = False
    read_interest = EDGE
    reading_since = NOT_READING  # a read is one call of the system

    def end_read(self) -> None:
        return None

    def probe(self) -> Peer:
        fd = self._socket.fileno()
        if fd < 0:
            return Peer.GONE
        if hasattr(select, "POLLRDHUP"):
            # Distinguishes the end from unread bytes before it; a peek would see only the bytes.
            poll = select.poll()
            poll.register(fd, select.POLLIN | select.POLLRDHUP)
            ready = poll.poll(0)
            if not ready:
                return Peer.QUIET
            return Peer.SENDING if ready[0][1] == select.POLLIN else Peer.GONE
        try:
            return Peer.SENDING if self._socket.recv(1, socket.MSG_PEEK) else Peer.GONE
        except BlockingIOError:
            return Peer.QUIET
        except OSError:
            return Peer.GONE

    def unsent(self) -> int:
        if sys.platform != "linux":  # elsewhere TIOCOUTQ is for terminals
            return 0
        count = array.array("i", [0])
        try:
            fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, count)  # SIOCOUTQ, tcp(7)
        except (OSError, ValueError):
            return 0
        return count[0]

    def shut_write(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ConnectionLost(str(error)) from None

    def close(self, *, notify: bool = True) -> None:
        if self.is_own():
            shut_down(self._socket)
        self._socket.close()

    def is_own(self) -> bool:
        return self._process == os.getpid()

    def abort(self) -> None:
        try:
            if self.is_own():
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                reset(self._socket)
        finally:
            self._socket.close()


def shut_down(sock: socket.socket) -> None:
    """End both directions, or listening, even if a forked child also holds the descriptor.

    close(2) alone has no effect on the peer, or on the port, until the last holder closes.
    """
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is no longer connected


# SO_LINGER acts on the last holder's close(2) only. On Linux, connect(2) to AF_UNSPEC resets the
# connection at once.
_connect = ctypes.CDLL(None).connect
_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)  # struct sockaddr


def reset(sock: socket.socket) -> None:
    """Break the connection at once, also for a thread that reads it, if the system can."""
    if sys.platform == "linux":
        _connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
