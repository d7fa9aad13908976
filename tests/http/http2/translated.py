"""A client that takes HTTP/1.1 and speaks HTTP/2: tests of behavior run over both.

It has the methods of `RawClient`. What a test sends is a request in HTTP/1.1, whole or in parts;
chunks are DATA frames, and a stream that the server resets is a connection that broke.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from typing import Any

from tests.http.http2.http2_wire import (
    DATA,
    END_STREAM,
    GOAWAY,
    RST_STREAM,
    Fields,
    Http2Client,
    StreamReply,
    frame,
)
from tests.http.http_wire import RawClient, client_context

# Fields of HTTP/1.1's connections, which HTTP/2 does not have
_DROPPED = ("connection", "transfer-encoding", "keep-alive")


class TranslatingClient(RawClient):
    """Over a plain connection."""

    def __init__(
        self, port: int, host: str = "127.0.0.1", receive_buffer: int = 0, preamble: bytes = b""
    ) -> None:
        self.frames = Http2Client(
            port, host, receive_buffer=receive_buffer, tls=self.context(), preamble=preamble
        )
        self._asked: deque[int] = deque()  # streams whose response was not read
        self._current = 0  # the stream whose response is being read
        self._given = 0  # chunks of it
        self._piece = b""  # of a chunk that `exactly` read
        self._partial = b""  # of a head
        self._missing = 0  # bytes of the body that is being sent
        self._chunked = False

    def context(self) -> ssl.SSLContext | None:
        return None

    @property
    def socket(self) -> socket.socket:  # type: ignore[override]
        found: socket.socket = self.frames.socket
        return found

    def send(self, data: bytes) -> None:
        while data:
            if self._missing:
                part, data = data[: self._missing], data[self._missing :]
                self._missing -= len(part)
                self._send_data(part, ended=not self._missing)
                continue
            if self._chunked:
                data = self._send_chunk(self._partial + data)
                continue
            head, end, rest = (self._partial + data).partition(b"\r\n\r\n")
            self._partial, data = (b"", rest) if end else (head, b"")
            if end:
                self._send_head(head.decode("latin-1"))

    def _send_head(self, head: str) -> None:
        line, *lines = head.split("\r\n")
        method, path, version = line.split(" ")
        assert version == "HTTP/1.1"
        given = [line.split(": ", 1) for line in lines]
        fields: Fields = [(":method", method), (":scheme", "http"), (":path", path)]
        fields += [(":authority", value) for name, value in given if name.lower() == "host"]
        rest = [(name.lower(), value) for name, value in given if name.lower() != "host"]
        self._chunked = ("transfer-encoding", "chunked") in rest
        fields += [pair for pair in rest if pair[0] not in _DROPPED]
        self._missing = int(dict(rest).get("content-length", 0))
        ended = not (self._missing or self._chunked)
        stream = self.frames.take_stream()
        self._asked.append(stream)
        self.frames.send(self.frames.headers(stream, fields, ended=ended))

    def _send_chunk(self, data: bytes) -> bytes:
        """Send one chunk as DATA; what follows it, or nothing while it is not whole."""
        line, found, rest = data.partition(b"\r\n")
        size = int(line, 16) if found else 0
        if not found or len(rest) < size + 2:
            self._partial = data
            return b""
        self._partial = b""
        self._chunked = size > 0
        self._send_data(rest[:size], ended=not size)
        return rest[size + 2 :]

    def _send_data(self, data: bytes, *, ended: bool) -> None:
        stream = self._asked[-1] if self._asked else self._current
        for at in range(0, max(len(data), 1), 16384):
            flags = END_STREAM if ended and at + 16384 >= len(data) else 0
            self.frames.send(frame(DATA, flags, stream, data[at : at + 16384]))

    def reply(self, method: str = "GET") -> StreamReply:
        stream = self._next()
        reply = self.frames.reply(stream)
        if reply.reset is not None:
            raise ConnectionResetError
        return reply

    def reply_head(self) -> StreamReply:
        stream = self._next()
        while not self._reply(stream).status:
            if self._reply(stream).informational:
                found = StreamReply(self._reply(stream).informational.pop(), {}, b"")
                self._asked.appendleft(stream)
                return found
            self._frame()
        return self._reply(stream)

    def chunk(self) -> bytes:
        stream = self._current
        while len(self._reply(stream).chunks) <= self._given:
            if stream in self.frames.ended:
                if self._reply(stream).reset is not None:
                    raise ConnectionResetError
                return b""
            self._frame()
        self._given += 1
        return self._reply(stream).chunks[self._given - 1]

    def exactly(self, size: int) -> bytes:
        if self._asked and not self._current:
            self._next()
        parts, missing = [self._piece], size - len(self._piece)
        while missing > 0:
            data = self.chunk()
            if not data:
                raise EOFError(f"the stream ended; {missing} of {size} bytes are missing")
            parts.append(data)
            missing -= len(data)
        whole = b"".join(parts)
        self._piece = whole[size:]
        return whole[:size]

    def until(self, end: bytes) -> bytes:
        stream = self._asked[0] if self._asked else self._current
        reply = self._reply(stream)
        while end not in reply.head + (body := reply.so_far):
            self._frame()
        return body

    def rest(self) -> bytes:
        """What comes of the current stream until the connection ends."""
        if self._asked and not self._current:
            self._next()
        before = len(self._reply(self._current).chunks) if self._current else 0
        try:
            while True:
                found = self._frame()
                if found.kind == RST_STREAM and found.stream == self._current:
                    raise ConnectionResetError
        except EOFError:
            pass
        return b"".join(self._reply(self._current).chunks[before:]) if self._current else b""

    def ended(self) -> bool:
        """The server ended the connection, with GOAWAY at most; waits for it."""
        seen = len(self.frames.seen)
        frames = self.frames.all_frames()[seen:]
        return all(found.kind in (GOAWAY, RST_STREAM, 4, 6, 8) for found in frames)

    def wait_begun(self) -> None:
        stream = self._asked[0]
        while stream not in self.frames.replies:
            self._frame()

    def half_close(self) -> None:
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def _next(self) -> int:
        self._current, self._given, self._piece = self._asked.popleft(), 0, b""
        return self._current

    def _reply(self, stream: int) -> StreamReply:
        return self.frames.replies.setdefault(stream, StreamReply(0, {}, b""))

    def _frame(self) -> Any:
        return self.frames.frame()


class TranslatingTlsClient(TranslatingClient):
    """The same over TLS."""

    def context(self) -> ssl.SSLContext:
        context = client_context()
        context.set_alpn_protocols(["h2"])
        return context
