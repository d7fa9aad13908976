"""HTTP/2 clients for measuring: h2load for requests, a reader of our own for many event streams."""

from __future__ import annotations

import json
import re
import select
import shutil
import socket
import struct
import subprocess
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..common import BenchError
from .load import ClientError

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW = 2**30  # bytes; this client takes everything at once


def h2load(url: str, connections: int, streams: int, seconds: float, *, http1: bool) -> float:
    """Requests a second. Raises BenchError without h2load, ClientError when a request fails."""
    program = shutil.which("h2load")
    if program is None:
        raise BenchError("h2load is not installed (Debian's package nghttp2-client)")
    command = [program, "-c", str(connections), "-m", str(streams), "-D", f"{seconds:g}", url]
    if http1:
        command.append("--h1")
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", text)
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
    if not rate or not failed or any(map(int, failed.groups())):
        raise ClientError(f"h2load saw failures:\n{text}")
    return float(rate[1])


@dataclass(slots=True)
class EventStream:
    """One response as it was received; times are `time.monotonic` seconds."""

    sent: float = 0.0
    head: bytes = b""
    body: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[int, float]] = field(default_factory=list)  # (bytes so far, when)

    def events(self) -> tuple[list[bytes], list[float]]:
        """The data of each event and when it had arrived. Raises `ClientError`."""
        if not self.head.startswith(b"\x88") or b"text/event-stream" not in self.head:
            raise ClientError(f"not a stream: {self.head!r} {bytes(self.body[:300])!r}")
        *blocks, rest = bytes(self.body).split(b"\n\n")
        if rest:
            raise ClientError(f"the last event is cut short: {rest[:100]!r}")
        events, times, position = [], [], 0
        for block in blocks:
            position += len(block) + 2
            if block.startswith(b":"):
                continue
            events.append(block.removeprefix(b"data: "))
            times.append(self.arrivals[bisect_left(self.arrivals, (position, 0.0))][1])
        return events, times


def read_event_streams(
    host: str,
    port: int,
    path: str,
    bodies: Sequence[object],
    connections: int,
    silence: float,
    progress: Callable[[int], object],
) -> list[EventStream]:
    """POST all bodies at once, spread over the connections; all streams, read to their end."""
    streams = [EventStream() for _ in bodies]
    clients = [
        _Client(host, port, path, bodies[n::connections], streams[n::connections])
        for n in range(connections)
    ]
    poll = select.poll()
    by_fd = {client.socket.fileno(): client for client in clients}
    try:
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        while any(client.open for client in clients):
            ready = poll.poll(silence * 1000)
            if not ready:
                raise ClientError(f"no byte from any stream for {silence:g} s")
            for fd, _ in ready:
                progress(by_fd[fd].read())
    finally:
        for client in clients:
            client.socket.close()
    return streams


class _Client:
    """One connection with a stream for each body."""

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        bodies: Sequence[object],
        streams: Sequence[EventStream],
    ) -> None:
        self.socket = socket.create_connection((host, port))
        self.open = dict(zip(range(1, 2 * len(streams), 2), streams, strict=True))
        self._buffer = b""
        parts = [_PREFACE, _frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, _WINDOW))]
        parts.append(_frame(8, 0, 0, struct.pack(">I", _WINDOW)))
        # POST, http, and literals for :path, :authority and content-type (RFC 7541 appendix A)
        block = b"\x83\x86" + b"".join(
            name + bytes((len(value),)) + value
            for name, value in (
                (b"\x04", path.encode()), (b"\x01", b"bench"), (b"\x0f\x10", b"application/json"),
            )
        )  # fmt: skip
        for id, body in zip(self.open, bodies, strict=True):
            parts += (
                _frame(_HEADERS, 4, id, block),
                _frame(_DATA, 1, id, json.dumps(body).encode()),
            )
        for stream in streams:
            stream.sent = time.monotonic()
        self.socket.sendall(b"".join(parts))

    def read(self) -> int:
        """Take what has arrived; how many streams have ended with it."""
        data = self.socket.recv(1 << 18)
        now = time.monotonic()
        if not data and self.open:
            raise ClientError(f"the server closed with {len(self.open)} open streams")
        self._buffer += data
        position = ended = 0
        while len(self._buffer) >= position + 9:
            high, low, kind, flags, id = struct.unpack_from(">BHBBI", self._buffer, position)
            end = position + 9 + (high << 16 | low)
            if len(self._buffer) < end:
                break
            ended += self._take(kind, flags, id, self._buffer[position + 9 : end], now)
            position = end
        self._buffer = self._buffer[position:]
        return ended

    def _take(self, kind: int, flags: int, id: int, payload: bytes, now: float) -> int:
        if kind == _SETTINGS and not flags & 1:
            self.socket.sendall(_frame(_SETTINGS, 1, 0, b""))
        elif kind == _PING and not flags & 1:
            self.socket.sendall(_frame(_PING, 1, 0, payload))
        elif kind in (_RST_STREAM, _GOAWAY):
            raise ClientError(f"the server ended a stream or the connection: {payload!r}")
        elif kind == _HEADERS:
            self.open[id].head = payload
        elif kind == _DATA:
            stream = self.open[id]
            stream.body += payload
            stream.arrivals.append((len(stream.body), now))
            if flags & 1:
                del self.open[id]
                return 1
        return 0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
