"""Thousands of idle connections, slow heads and streams, and /health meanwhile."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cllm.http import BodyStream, HttpHandler, HttpRequest, HttpResponse, Server
from tests.http.http_wire import (
    PATIENCE,
    Connect,
    RawClient,
    Serve,
    basic_handler,
    encode,
    wait_until,
)

# In a process of its own, which doubles the descriptors there are: one per connection and side.
CROWD = """
import resource, socket, sys
port, count, sent = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
crowd = []
for _ in range(count):
    crowd.append(socket.create_connection(("127.0.0.1", port)))
    crowd[-1].sendall(sent)
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[int]:
    """Raise the soft limit to the hard one; how many connections a test may hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield min(hard, 1 << 20) - 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """`count` clients that connect, send `sent` and wait until the test ends."""

    def __init__(self, server: Server, count: int, sent: bytes = b"") -> None:
        arguments = [sys.executable, "-c", CROWD, str(server.port), str(count), sent.decode()]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "there\n"
        wait_until(lambda: server.stats().connections_open >= count, "all are accepted")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate("", timeout=PATIENCE)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_idle_connections(serve: Serve, connect: Connect, descriptors: int) -> None:
    count = min(10_000, descriptors)
    server = serve(max_connections=count + 10)
    with Crowd(server, count):
        client = connect(server)
        for _ in range(100):
            assert client.get("/health").status == 200
        assert connect(server).get("/health").status == 200, "and a new one comes in"
        queue = server._acceptor.queue
        wait_until(lambda: not queue.watched and queue._awake == 0, "the server sleeps under them")
        assert client.get("/health").status == 200
    client.close()
    wait_until(lambda: server.stats().connections_open <= 10, "their end is seen")


def test_a_thousand_clients_with_slow_heads(serve: Serve, connect: Connect) -> None:
    server = serve(head_timeout=60.0)
    with Crowd(server, 1000, b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "):
        client = connect(server)
        for _ in range(100):
            assert client.get("/health").status == 200


def test_a_thousand_slow_heads_are_all_timed_out(serve: Serve, connect: Connect) -> None:
    server = serve(head_timeout=2.0, linger_timeout=0.0)
    with Crowd(server, 1):
        clients = []
        for _ in range(1000):  # each sends at once: one that is silent is closed without a word
            clients.append(connect(server))
            clients[-1].send(b"G")
        assert [client.reply().status for client in clients] == [408] * 1000
        assert connect(server).get("/health").status == 200


def test_a_thousand_streams_are_each_complete_and_correct(serve: Serve, connect: Connect) -> None:
    streams: dict[str, BodyStream] = {}

    def begin(request: HttpRequest) -> HttpResponse:
        stream = streams[request.path_params["name"]] = BodyStream()
        return HttpResponse.sse(stream)

    handler = basic_handler()
    handler.get("/stream/{name}", begin)
    server = serve(handler, workers=16)
    before = resident_bytes() if sys.platform == "linux" else 0
    clients = {f"{number}": connect(server) for number in range(1000)}
    for name, client in clients.items():
        client.send(encode(path=f"/stream/{name}"))
    wait_until(lambda: len(streams) == 1000, "all have begun")
    wait_until(lambda: server.stats().parked == 1000, "all are parked")
    if sys.platform == "linux":
        # The clients' side lives in this process too, so this is an upper bound.
        assert resident_bytes() - before < 1000 * 64 * 1024

    def produce() -> None:
        for token in range(50):
            for name, stream in streams.items():
                stream.write(b"data: %s-%d\n\n" % (name.encode(), token))
        for stream in streams.values():
            stream.close()

    producer = threading.Thread(target=produce)
    producer.start()
    health = connect(server)
    while producer.is_alive():
        assert health.get("/health").status == 200
    for name, client in clients.items():
        reply = client.reply()
        expected = (b"data: %s-%d\n\n" % (name.encode(), token) for token in range(50))
        assert reply.body == b"".join(expected)
    producer.join(PATIENCE)


def test_a_thousand_clients_that_leave_their_streams(serve: Serve, connect: Connect) -> None:
    left = threading.Semaphore(0)

    def begin(request: HttpRequest) -> HttpResponse:
        stream = BodyStream()
        stream.on_cancel(lambda reason: left.release())
        return HttpResponse.sse(stream)

    handler = HttpHandler()
    handler.get("/", begin)
    server = serve(handler)
    clients = [RawClient(server.port) for _ in range(1000)]
    for client in clients:
        client.send(encode())
    for client in clients:
        client.reply_head()
        client.close()
    for _ in range(1000):
        assert left.acquire(timeout=PATIENCE)
    wait_until(lambda: server.stats().connections_open == 0, "all are closed")
    assert server.stats().clients_left_total == 1000


def test_connections_that_come_and_go_leave_nothing_behind(serve: Serve) -> None:
    server = serve()
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(1000):
        with RawClient(server.port) as client:
            assert client.get().status == 200
    wait_until(lambda: server.stats().connections_open == 0, "all are closed")
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == descriptors
