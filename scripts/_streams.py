"""Reads many SSE streams at once and says afterwards whether each one was whole and well-formed."""

from __future__ import annotations

import json
import select
import socket
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from _load import ClientError, dechunk

_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Stream:
    """One response as it came in; times are `time.monotonic` seconds."""

    sent: float = 0.0
    raw: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[int, float]] = field(default_factory=list)  # (bytes so far, when)

    def events(self) -> tuple[list[Any], list[float]]:
        """The JSON of each event and when its last byte came.

        Raises `ClientError` when the response is not a complete 200 text/event-stream.
        """
        raw = bytes(self.raw)
        head, separator, _rest = raw.partition(b"\r\n\r\n")
        if not raw.startswith(b"HTTP/1.1 200 ") or b"text/event-stream" not in head.lower():
            raise ClientError(f"not a stream: {raw[:300]!r}")
        body, marks = dechunk(raw, len(head) + len(separator))
        if not body.endswith(b"\n\n"):
            raise ClientError(f"the last event is cut short: {body[-100:]!r}")
        chunk_ends = [end for end, _wire_end in marks]
        events, times = [], []
        position = 0
        for block in body[:-2].split(b"\n\n"):
            position += len(block) + 2
            if not block.startswith(b"data: "):
                raise ClientError(f"an event without data: {block[:100]!r}")
            events.append(json.loads(block[6:]))
            wire_end = marks[bisect_left(chunk_ends, position)][1]
            times.append(self.arrivals[bisect_left(self.arrivals, (wire_end, 0.0))][1])
        return events, times


def read_streams(
    host: str,
    port: int,
    requests: Sequence[bytes],
    *,
    silence: float,
    progress: Callable[[], object],
) -> list[Stream]:
    """Connect once for each request, then send all requests and read until every stream has ended.

    `silence`: seconds without a byte from anybody after which it gives up with `ClientError`.
    `progress` is called as each stream ends.
    """
    sockets: list[socket.socket] = []
    try:
        for _ in requests:
            connection = socket.create_connection((host, port), 30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(connection)
        return _read(sockets, requests, silence, progress)
    finally:
        for connection in sockets:
            connection.close()


def _read(
    sockets: Sequence[socket.socket],
    requests: Sequence[bytes],
    silence: float,
    progress: Callable[[], object],
) -> list[Stream]:
    poller = select.poll()
    streams: dict[int, tuple[socket.socket, Stream]] = {}
    for connection, request in zip(sockets, requests, strict=True):
        stream = Stream(sent=time.monotonic())
        connection.sendall(request)
        streams[connection.fileno()] = (connection, stream)
        poller.register(connection, select.POLLIN)
    result = [stream for _connection, stream in streams.values()]
    while streams:
        ready = poller.poll(silence * 1e3)
        if not ready:
            raise ClientError(f"{len(streams)} streams silent for {silence:g} s")
        for number, _event in ready:
            connection, stream = streams[number]
            data = connection.recv(65536)
            stream.raw += data
            stream.arrivals.append((len(stream.raw), time.monotonic()))
            # Events are JSON lines, in which CR LF is always escaped: only the last chunk matches.
            if not data or stream.raw.endswith(_LAST_CHUNK):
                poller.unregister(number)
                del streams[number]
                progress()
    return result
