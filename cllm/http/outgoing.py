"""Bytes on their way to one client: what the socket did not take yet, and how slowly it may."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from cllm.http.connection import AGAIN, NEVER, Connection
from cllm.http.limits import ServerConfig
from cllm.http.poller import READ, WRITE
from cllm.http.transport import IOV_MAX, WANT_READ, Buffer

TURN_WRITES = 16  # sendmsg calls before other connections get their turn

# Bytes up to which buffers are joined: send(2) of one is faster than sendmsg(2) of several.
JOINED = 4096


class Outgoing:
    """One connection's; by its owner.

    pending: the bytes, in order; size: how many.
    chunked: a stream is framed as chunks (RFC 9112 section 7.1).
    """

    __slots__ = ("_config", "_unsent", "chunked", "pending", "size")

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.pending: list[Buffer] = []
        self.size = 0
        self.chunked = False
        # Since the write deadline was set: what the kernel held then and took since; -1: not set
        self._unsent = -1

    def begin(self, head: bytes, body: bytes = b"") -> None:
        """A response begins; nothing is pending."""
        size = self.size = len(head) + len(body)
        if size <= JOINED:
            self.pending = [head + body]
        else:
            self.pending = [head, body] if body else [head]

    @property
    def short(self) -> bool:
        """Little is pending."""
        return self.size <= JOINED

    def append(self, pieces: Sequence[Buffer], size: int) -> None:
        """Append bytes as they are; size: of all pieces."""
        self.pending += pieces
        self.size += size

    def frame(self, pieces: Sequence[Buffer], *, last: bool) -> int:
        """Append a stream's pieces, as one chunk however many they are; their size.

        last: the body ends with them.
        """
        size = sum(map(len, pieces))
        pending = self.pending
        if not self.chunked:
            self.append(pieces, size)
            return size
        chunk: Sequence[Buffer] = ()
        if size:  # a chunk of no bytes would be the last one (RFC 9112 section 7.1)
            chunk = (b"%x\r\n" % size, *pieces, b"\r\n0\r\n\r\n" if last else b"\r\n")
            if size <= JOINED:
                chunk = (b"".join(chunk),)
        elif last:
            chunk = (b"0\r\n\r\n",)
        pending += chunk
        self.size += sum(map(len, chunk))
        return size

    def drop(self) -> None:
        """Forget what is pending: the connection ends."""
        self.pending = []
        self.size = 0

    def flush(self, connection: Connection) -> int:
        """Write: 0 when everything has left, else the interest to park with, or AGAIN.

        Sets the connection's deadline while something is left. Raises ConnectionLost.
        """
        pending = self.pending
        write = connection.transport.write
        interest = AGAIN
        for _ in range(TURN_WRITES):
            sent = write(pending if len(pending) <= IOV_MAX else pending[:IOV_MAX])
            if sent == self.size:
                self.pending = []
                self.size = 0
                self._unsent = -1
                connection.deadline = NEVER
                return 0
            if sent < 0:
                interest = READ if sent == WANT_READ else WRITE
                break
            pending = self.pending = rest(pending, sent)
            self.size -= sent
            if self._unsent >= 0:
                self._unsent += sent
        if self._unsent < 0:
            self._unsent = connection.transport.unsent()
            connection.deadline = monotonic() + self._config.write_timeout
        return interest

    def progressed(self, connection: Connection) -> bool:
        """Whether enough has left since the deadline was set; the connection then gets a new one.

        The poller says that there is room to write only after a large part of the kernel's buffer
        has left, which takes a slow reader longer than any deadline.
        """
        config = self._config
        unsent = connection.transport.unsent()
        left = self._unsent - unsent
        if left < config.least_sent:
            return False
        self._unsent = unsent
        connection.deadline = monotonic() + config.write_timeout
        return True


def rest(buffers: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left after `sent` bytes; nothing is copied. A negative count is none."""
    for index, buffer in enumerate(buffers):
        size = len(buffer)
        if sent < size:
            left = list(buffers[index:])
            if sent > 0:
                left[0] = memoryview(buffer)[sent:]
            return left
        sent -= size
    return []
