"""An HTTP/2 client that sends exactly what a test says and shows every frame that comes back.

It encodes header blocks with the package `hpack`, and frames by itself, so that nothing of the
server's own code is on this side.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass, field
from typing import Any

import hpack

from tests.http.http_wire import PATIENCE, Reply

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9
END_STREAM = ACK = 1
END_HEADERS = 4
PADDED = 8
HAS_PRIORITY = 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT = range(5)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(5, 10)
ENHANCE_YOUR_CALM = 11

Fields = list[tuple[str, str]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame: `settings(s4=0)` sets the identifier 4."""
    pairs = (struct.pack(">HI", int(name[1:]), value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def uint32(value: int) -> bytes:
    return struct.pack(">I", value)


def request_fields(method: str = "GET", path: str = "/", *more: tuple[str, str]) -> Fields:
    pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "test")]
    return [*pseudo, *more]


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        at = 4 if self.kind == GOAWAY else 0
        return int.from_bytes(self.payload[at : at + 4], "big")

    @property
    def last_stream(self) -> int:
        return int.from_bytes(self.payload[:4], "big")


@dataclass
class StreamReply(Reply):
    """A response as it came on one stream."""

    informational: list[int] = field(default_factory=list)
    reset: int | None = None  # the code of RST_STREAM

    @property
    def so_far(self) -> bytes:
        """The part of the body that has come; `body` is set when it is whole."""
        return b"".join(self.chunks)


class Http2Client:
    """A connection, after the prefaces of both sides unless `greet` is False."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        greet: bool = True,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int = 0,
        preamble: bytes = b"",
        **first: int,
    ) -> None:
        self.socket: Any = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((host, port))
        # A request may follow a WINDOW_UPDATE, whose acknowledgement takes 40 ms.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(preamble)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self.buffer = b""
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.next_stream = 1
        self.replies: dict[int, StreamReply] = {}
        self.ended: set[int] = set()
        self.seen: list[Frame] = []
        self.acks = True  # acknowledge SETTINGS
        self.updates = True  # give back the windows of what has come
        if greet:
            self.send(PREFACE + settings(**first))

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    # Sending

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def block(self, fields: Fields) -> bytes:
        return self.encoder.encode(fields)

    def headers(self, stream: int, fields: Fields, *, ended: bool = True) -> bytes:
        flags = END_HEADERS | (END_STREAM if ended else 0)
        return frame(HEADERS, flags, stream, self.block(fields))

    def open(
        self,
        method: str = "GET",
        path: str = "/",
        body: bytes | None = None,
        *more: tuple[str, str],
    ) -> int:
        """Send a request; its stream. A body goes out in frames without regard to windows."""
        stream = self.take_stream()
        fields = request_fields(method, path, *more)
        parts = [self.headers(stream, fields, ended=body is None)]
        if body is not None:
            for at in range(0, max(len(body), 1), 16384):
                part = body[at : at + 16384]
                flags = END_STREAM if at + 16384 >= len(body) else 0
                parts.append(frame(DATA, flags, stream, part))
        self.send(b"".join(parts))
        return stream

    def take_stream(self) -> int:
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        return stream

    # Receiving

    def request(
        self,
        method: str = "GET",
        path: str = "/",
        body: bytes | None = None,
        *more: tuple[str, str],
    ) -> StreamReply:
        return self.reply(self.open(method, path, body, *more))

    def reply(self, stream: int) -> StreamReply:
        """The response on a stream, once it has ended."""
        while stream not in self.ended:
            self.frame()
        return self.replies[stream]

    def first_data(self, stream: int) -> bytes:
        """The part of the body that has come, once there is some."""
        while stream not in self.replies or not self.replies[stream].chunks:
            self.frame()
        return self.replies[stream].chunks[0]

    def frame(self) -> Frame:
        """Read one frame and take it into account. Raises EOFError at the end."""
        head = self._exactly(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        found = Frame(kind, flags, stream, self._exactly(size))
        self.seen.append(found)
        self._take(found)
        return found

    def until(self, kind: int, stream: int | None = None, *, ack: bool | None = None) -> Frame:
        """Read up to a frame of this kind."""
        while True:
            found = self.frame()
            if (
                found.kind == kind
                and stream in (None, found.stream)
                and ack in (None, bool(found.flags & ACK))
            ):
                return found

    def all_frames(self) -> list[Frame]:
        """Everything until the server ends the connection."""
        try:
            while True:
                self.frame()
        except (EOFError, ConnectionError):
            return self.seen

    def settled(self) -> None:
        """Everything sent so far has been handled: a PING comes back."""
        self.send(frame(PING, 0, 0, b"settled?"))
        while self.until(PING, ack=True).payload != b"settled?":
            continue

    def _take(self, found: Frame) -> None:
        stream = found.stream
        if found.kind == SETTINGS and not found.flags & ACK and self.acks:
            self._respond(frame(SETTINGS, ACK, 0))
        elif found.kind == HEADERS:
            assert found.flags & END_HEADERS, "the tests' responses have short heads"
            self._take_head(stream, found.payload)
        elif found.kind == DATA:
            reply = self.replies[stream]
            if found.payload:
                reply.chunks.append(found.payload)
                if self.updates:
                    increment = uint32(len(found.payload))
                    self._respond(frame(WINDOW_UPDATE, 0, 0, increment))
                    if not found.flags & END_STREAM:
                        self._respond(frame(WINDOW_UPDATE, 0, stream, increment))
        elif found.kind == RST_STREAM:
            if stream in self.ended:
                return
            reply = self.replies.setdefault(stream, StreamReply(0, {}, b""))
            reply.reset = found.code
            self._end(stream)
        if found.kind in (HEADERS, DATA) and found.flags & END_STREAM:
            self._end(stream)

    def _end(self, stream: int) -> None:
        self.ended.add(stream)
        self.replies[stream].body = self.replies[stream].so_far

    def _respond(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the server may have ended the connection
            self.send(data)

    def _take_head(self, stream: int, block: bytes) -> None:
        fields = [(str(name), str(value)) for name, value in self.decoder.decode(block)]
        assert all(name == name.lower() for name, _ in fields)
        assert fields[0][0] == ":status"
        status = int(fields[0][1])
        reply = self.replies.setdefault(stream, StreamReply(0, {}, b""))
        if status < 200:
            reply.informational.append(status)
        else:
            reply.status = status
            reply.head = block
            reply.headers = dict(fields[1:])

    def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(f"the server ended; {size - len(self.buffer)} bytes are missing")
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data
