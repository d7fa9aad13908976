"""Measure HTTPS: throughput against uvicorn, the cost of an event, streams during handshakes."""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from .clients.load import SPAWN, measure_load, request_bytes
from .common import Report
from .servers import peers
from .servers.server import HOST, REPOSITORY, Server, cllm_server, free_port

CERTIFICATES = REPOSITORY / "tests" / "http" / "certificates"
CERT, KEY = str(CERTIFICATES / "localhost.pem"), str(CERTIFICATES / "localhost.key")
CONNECTIONS = 64
STREAMS = 8
EVENTS = 20_000  # of all streams together, to measure the cost of one
HANDSHAKES = 1000
LASTING = 8.0  # s that the streams run during the storm, and without it

# /fast: events as fast as they are sent. /slow: one every 20 ms, with the time of its writing.
_STREAMING = """
import sys, threading, time
from cllm.http import BodyStream, HttpHandler, HttpResponse, Server, ServerConfig, TlsConfig

port, events, cert, key = sys.argv[1:]
handler = HttpHandler()
streams = []
handler.get("/health", lambda request: "ok")
handler.get_streaming("/fast", lambda request: ({"token": "word"} for _ in range(int(events))))

def slow(request):
    streams.append(BodyStream())
    return HttpResponse.sse(streams[-1])

handler.get("/slow", slow)
tls = TlsConfig(((cert, key),)) if cert else None
Server(handler, port=int(port), config=ServerConfig(access_log=False), tls=tls).start()
while True:
    time.sleep(0.02)
    for stream in list(streams):
        try:
            stream.write(b"data: %.6f\\n\\n" % time.monotonic())
        except Exception:
            streams.remove(stream)
"""


def tls(report: Report, options: argparse.Namespace) -> None:
    """Throughput, events and handshakes."""
    _throughput(report, options)
    _events(report, options)
    _storm(report)


def trusting() -> ssl.SSLContext:
    """A client that trusts the certificate of these servers."""
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "server-ca.pem"))
    context.check_hostname = False
    return context


def _throughput(report: Report, options: argparse.Namespace) -> None:
    peer = "uvicorn (bare ASGI)"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options_of_tls = ("--tls-cert", CERT, "--tls-key", KEY)
        servers = [stack.enter_context(cllm_server(*options_of_tls, context=trusting()))]
        if missing := peers.missing(peer):
            print(f"\nleft out: {peer}: not installed: {', '.join(missing)}")
        else:
            servers.append(
                stack.enter_context(peers.start(peer, folder, (CERT, KEY), context=trusting()))
            )
        rates: dict[str, list[float]] = {server.name: [] for server in servers}
        for _ in range(options.rounds):
            for server in servers:
                load = measure_load(
                    HOST, server.port, "/health", CONNECTIONS, options.seconds, context=trusting()
                )
                rates[server.name].append(load.rate)
    report.table(
        f"Requests a second over TLS; GET /health, {CONNECTIONS} connections, median of "
        f"{options.rounds} rounds",
        [{"server": name, "req/s": statistics.median(found)} for name, found in rates.items()],
    )
    if len(servers) == 2:
        ours, theirs = rates.values()
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        report.target(f"over TLS at least 1.3 × {peer}", ratio, ratio >= 1.3)


def _streaming_server(*, secured: bool) -> Server:
    port = free_port()
    files = (CERT, KEY) if secured else ("", "")
    command = [sys.executable, "-c", _STREAMING, str(port), str(EVENTS // STREAMS), *files]
    name = "streams over TLS" if secured else "streams"
    return Server(name, command, port, context=trusting() if secured else None)


def _open(port: int, path: str, *, secured: bool) -> socket.socket:
    sock = socket.create_connection((HOST, port), 60)
    if secured:
        sock = trusting().wrap_socket(sock)
    sock.sendall(request_bytes("GET", path))
    return sock


def _read_all(port: int, secured: bool) -> int:
    """Read one fast stream to its end; its events."""
    events = 0
    with _open(port, "/fast", secured=secured) as sock:
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            data = sock.recv(65536)
            events += data.count(b"data: ")
            tail = (tail + data)[-7:]
    return events


def _events(report: Report, options: argparse.Namespace) -> None:
    """The server's processor time for one event that is sent alone."""
    costs: dict[bool, list[float]] = {False: [], True: []}
    with contextlib.ExitStack() as stack:
        servers = {s: stack.enter_context(_streaming_server(secured=s)) for s in (False, True)}
        pool = stack.enter_context(ProcessPoolExecutor(STREAMS, mp_context=SPAWN))
        for _ in range(options.rounds + 1):
            for secured, server in servers.items():
                before = server.cpu_seconds()
                arguments = ([server.port] * STREAMS, [secured] * STREAMS)
                events = sum(pool.map(_read_all, *arguments))
                costs[secured].append((server.cpu_seconds() - before) / events * 1e6)
    plain, over_tls = (statistics.median(costs[secured][1:]) for secured in (False, True))
    report.table(
        f"Server's processor time for an event, µs; {STREAMS} streams",
        [{"transport": "plain", "µs": plain}, {"transport": "TLS", "µs": over_tls}],
    )
    ratio = over_tls / plain
    report.target("an event over TLS costs at most 1.3 × a plain one", ratio, ratio <= 1.3)


def _delays(port: int, seconds: float) -> list[float]:
    """Of the events of one slow stream, from their writing to their reading, in seconds."""
    delays = []
    with _open(port, "/slow", secured=True) as sock:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = sock.recv(65536)
            now = time.monotonic()
            for part in data.split(b"data: ")[1:]:
                delays.append(now - float(part.split(b"\n", 1)[0]))
    return delays


def _shake_hands(port: int, count: int) -> float:
    """Seconds for so many new TLS connections, one after the other."""
    context = trusting()
    begun = time.monotonic()
    for _ in range(count):
        with socket.create_connection((HOST, port), 60) as sock:
            context.wrap_socket(sock).close()
    return time.monotonic() - begun


def _storm(report: Report) -> None:
    """The delay of events while a thousand clients connect, and without them."""
    rows: list[dict[str, Any]] = []
    with (
        _streaming_server(secured=True) as server,
        ProcessPoolExecutor(STREAMS + 1, mp_context=SPAWN) as pool,
    ):
        list(pool.map(_shake_hands, [server.port] * (STREAMS + 1), [1] * (STREAMS + 1)))  # import
        for handshakes in (0, HANDSHAKES):
            watching = [pool.submit(_delays, server.port, LASTING) for _ in range(STREAMS)]
            time.sleep(1)
            took = pool.submit(_shake_hands, server.port, handshakes).result()
            delays = [delay * 1e3 for found in watching for delay in found.result()]
            rows.append(
                {
                    "handshakes": handshakes,
                    "took s": took,
                    "p50 ms": statistics.median(delays),
                    "max ms": max(delays),
                }
            )
    report.table(f"Delay of the events of {STREAMS} streams", rows)
    added = rows[1]["max ms"] - rows[0]["max ms"]
    report.target("handshakes delay no event by more than 100 ms", added, added <= 100)


def access_log(report: Report, options: argparse.Namespace) -> None:
    """The same requests with and without an access log, in turns."""
    rates: dict[str, list[float]] = {"off": [], "on": []}
    with cllm_server() as off, cllm_server("--access-log", "--log-level", "info") as on:
        for server in (off, on):
            measure_load(HOST, server.port, "/health", 8, 1)
        for _ in range(options.rounds):
            for name, server in (("off", off), ("on", on)):
                load = measure_load(HOST, server.port, "/health", CONNECTIONS, options.seconds)
                rates[name].append(load.rate)
    report.table(
        f"Requests a second by access log; GET /health, {CONNECTIONS} connections",
        [{"access log": name, "req/s": statistics.median(found)} for name, found in rates.items()],
    )
    ratio = statistics.median(a / b for a, b in zip(rates["on"], rates["off"], strict=True))
    report.target("with the access log at least 0.85 × the rate without", ratio, ratio >= 0.85)
