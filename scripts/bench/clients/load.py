"""HTTP clients for measuring: one connection, a load generator.

Every measurement runs in a process of its own, so that other clients never delay the clock of a
probe. Raw sockets: a client library would be slower than the servers.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import select
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)


class ClientError(RuntimeError):
    """A response that is cut short, malformed or not the expected one."""


def request_bytes(method: str, path: str, body: object = None) -> bytes:
    """An HTTP/1.1 request; `body` is sent as JSON."""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    data = json.dumps(body).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def response_end(buffer: bytes | bytearray) -> int:
    """Length of the first whole response in the buffer, 0 while it is incomplete."""
    head = buffer.find(b"\r\n\r\n")
    if head < 0:
        return 0
    length = _LENGTH.search(buffer, 0, head + 2)
    if length is not None:
        end = head + 4 + int(length[1])
        return end if len(buffer) >= end else 0
    if CHUNKED.search(buffer, 0, head + 2):
        # Chunks hold JSON lines, in which CR LF is always escaped: this can only be the last one.
        end = buffer.find(b"\r\n0\r\n\r\n", head)
        return end + 7 if end >= 0 else 0
    raise ClientError(f"a response without framing: {bytes(buffer[:head])!r}")


def dechunk(raw: bytes, start: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The decoded body and, for each chunk, (its end in the body, its end in `raw`)."""
    body = bytearray()
    marks: list[tuple[int, int]] = []
    while True:
        line = raw.index(b"\r\n", start)
        size = int(raw[start:line], 16)
        start = line + 2 + size + 2
        if raw[start - 2 : start] != b"\r\n":
            raise ClientError("a chunk that does not end where it says")
        if size == 0:
            return bytes(body), marks
        body += raw[line + 2 : start - 2]
        marks.append((len(body), start))


@dataclass(frozen=True, slots=True)
class Response:
    """Status and body of one response, and how long the wire representation was."""

    status: int
    body: bytes
    size: int

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One blocking keep-alive connection; a context manager."""

    def __init__(
        self, host: str, port: int, timeout: float = 60.0, context: ssl.SSLContext | None = None
    ) -> None:
        """context: for TLS."""
        self._host, self._port, self._timeout, self._context = host, port, timeout, context
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection((self._host, self._port), self._timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            self._socket = self._context.wrap_socket(self._socket)
        self._used = False

    def get(self, path: str) -> Response:
        return self.exchange(request_bytes("GET", path))

    def post(self, path: str, body: object) -> Response:
        return self.exchange(request_bytes("POST", path, body))

    def exchange(self, request: bytes) -> Response:
        """Send a request and wait for its whole response; `ClientError` when it is cut short.

        If the server closed after the response before, the request is sent again (RFC 9112 9.3.1).
        """
        raw = b""
        self._socket.sendall(request)
        while not (end := response_end(raw)):
            data = self._socket.recv(65536)
            if not data and not raw and self._used:
                self.close()
                self._connect()
                self._socket.sendall(request)
                continue
            if not data:
                raise ClientError(f"the server closed after {len(raw)} bytes of a response")
            raw += data
        self._used = True
        head = raw.index(b"\r\n\r\n") + 4
        chunked = CHUNKED.search(raw, 0, head)
        body = dechunk(raw[:end], head)[0] if chunked else raw[head:end]
        return Response(int(raw[9:12]), body, end)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What a load run measured: requests a second, 50th and 99th latency percentile in ms."""

    rate: float
    requests: int
    p50_ms: float
    p99_ms: float


def measure_load(
    host: str,
    port: int,
    path: str,
    connections: int,
    seconds: float,
    context: ssl.SSLContext | None = None,
) -> Load:
    """GET `path` over keep-alive connections at full speed: with `wrk`, or `hammer` without it.

    context: over TLS, which needs `wrk`. Raises `ClientError` when any response differs from that
    of a single request.
    """
    with Client(host, port, context=context) as client:
        expected = client.get(path)
    if expected.status != 200:
        raise ClientError(f"GET {path} gave {expected.status}: {expected.body[:200]!r}")
    if shutil.which("wrk"):
        scheme = "http" if context is None else "https"
        return _wrk(f"{scheme}://{host}:{port}{path}", connections, seconds, expected.size)
    if context is not None:
        raise ClientError("measuring over TLS needs wrk (Debian, Ubuntu: apt-get install wrk)")
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        request = [request_bytes("GET", path)]
        return pool.submit(hammer, host, port, request, connections, seconds=seconds).result()


def _wrk(url: str, connections: int, seconds: float, size: int) -> Load:
    whole = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--latency", url]
    return load_of(subprocess.run(command, capture_output=True, text=True, check=True).stdout, size)


def load_of(text: str, size: int) -> Load:
    """What wrk --latency printed. size: bytes of a response. Raises ClientError."""
    if "Non-2xx" in text or "Socket errors" in text:
        raise ClientError(f"wrk saw failures:\n{text}")
    total = re.search(r"(\d+) requests in [\d.]+\w+, ([\d.]+)([KMG]?)B read", text)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", text)
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s)\s", text)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)\s", text)
    if not (total and rate and p50 and p99):
        raise ClientError(f"cannot read wrk's output:\n{text}")
    requests = int(total[1])
    read = float(total[2]) * 1024.0 ** " KMG".index(total[3] or " ")
    # wrk checks statuses but not lengths; its byte count is rounded to two decimals.
    if requests and abs(read / requests - size) > 0.05 * size:
        raise ClientError(f"{read / requests:.0f} bytes a response, one alone has {size}")
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    return Load(
        float(rate[1]), requests, float(p50[1]) * scale[p50[2]], float(p99[1]) * scale[p99[2]]
    )


def hammer(
    host: str,
    port: int,
    requests: Sequence[bytes],
    connections: int,
    *,
    seconds: float = float("inf"),
    count: int = 2**62,
) -> Load:
    """Send `requests` in turn over keep-alive connections until the time or the count is reached.

    Every response must be whole and have status 200, else `ClientError`.
    """
    poller = select.poll()
    sockets: dict[int, socket.socket] = {}
    started: dict[int, float] = {}
    partial: dict[int, bytes] = {}
    latencies: list[float] = []
    source: Iterator[bytes] = cycle(requests)
    sent = min(connections, count)
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        for _ in range(sent):
            connection = stack.enter_context(socket.create_connection((host, port), 60))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poller.register(connection, select.POLLIN)
            sockets[connection.fileno()] = connection
        begin = now = time.perf_counter()
        for number, connection in sockets.items():
            started[number] = time.perf_counter()
            connection.sendall(next(source))
        while len(latencies) < sent:
            ready = poller.poll(60_000)
            if not ready:
                raise ClientError(f"no response within 60 s after {len(latencies)} responses")
            for number, _event in ready:
                connection = sockets[number]
                data = connection.recv(65536)
                if not data:
                    raise ClientError("the server closed a keep-alive connection")
                if number in partial:
                    data = partial.pop(number) + data
                end = response_end(data)
                if not end:
                    partial[number] = data
                    continue
                if end != len(data) or data[9:12] != b"200":
                    raise ClientError(f"an unexpected response: {data[:400]!r}")
                now = time.perf_counter()
                latencies.append(now - started[number])
                if sent < count and now - begin < seconds:
                    sent += 1
                    started[number] = now
                    connection.sendall(next(source))
    latencies.sort()
    done = len(latencies)
    return Load(
        done / (now - begin), done, latencies[done // 2] * 1e3, latencies[done * 99 // 100] * 1e3
    )
