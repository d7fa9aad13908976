"""Deadlines: slow clients get a 408 or a close; clients that only wait are left alone."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from cllm.http import BodyStream, DeferredResponse, HttpHandler, HttpResponse
from tests.http.http_wire import (
    HTTP_1,
    PATIENCE,
    Connect,
    Gate,
    Serve,
    any_version,
    basic_handler,
    encode,
    wait_until,
)

PROTOCOLS = HTTP_1

SHORT = 0.1  # s; for the deadline under test, with the others out of reach
ENOUGH = 0.5  # s; where the client has to do something before
LONG = 60.0


def test_a_head_that_does_not_come_is_answered_with_408(serve: Serve, connect: Connect) -> None:
    client = connect(serve(head_timeout=5 * SHORT))  # time for a TLS handshake is within it
    client.send(b"GET / HTTP/1.1\r\n")
    reply = client.reply()
    assert reply.status == 408
    assert "head" in reply.json()["error"]
    assert reply.headers["connection"] == "close"
    assert client.ended()


def test_a_head_has_its_time_from_its_first_byte_however_it_trickles(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve(head_timeout=3 * SHORT))
    client.send(b"GET / HTTP/1.1\r\nX: ")
    client.socket.settimeout(SHORT / 2)
    for _ in range(200):
        try:
            client.until(b"\r\n\r\n")
        except TimeoutError:
            client.send(b"x")
            continue
        break
    else:
        pytest.fail("bytes that trickle in keep a head alive")


def test_the_second_head_has_a_deadline_too(serve: Serve, connect: Connect) -> None:
    client = connect(serve(head_timeout=ENOUGH))
    assert client.get().status == 200
    client.send(b"G")
    assert client.reply().status == 408


def test_a_head_cut_behind_a_pipelined_request_has_a_deadline(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve(head_timeout=ENOUGH))
    client.send(encode() + b"GET / HT")
    assert client.reply().status == 200
    assert client.reply().status == 408


@any_version
def test_a_body_that_does_not_come_is_answered_with_408(serve: Serve, connect: Connect) -> None:
    client = connect(serve(body_timeout=SHORT))
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
    reply = client.reply()
    assert reply.status == 408
    assert "body" in reply.json()["error"]


@any_version
def test_a_body_that_makes_progress_may_take_longer(serve: Serve, connect: Connect) -> None:
    # The head's deadline, which is shorter, does not apply to the body either.
    client = connect(serve(head_timeout=ENOUGH, body_timeout=2 * ENOUGH, min_rate=1))
    body = b"x" * 24
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 24\r\n\r\n")
    pause = threading.Event()
    for byte in body:
        pause.wait(SHORT / 2)
        client.send(bytes([byte]))
    assert client.reply().body == body


@any_version
def test_an_idle_connection_is_closed_without_a_word(serve: Serve, connect: Connect) -> None:
    server = serve(keep_alive_timeout=SHORT)
    client = connect(server)
    assert client.get().status == 200
    assert client.ended()
    assert server.stats().timeouts_total == 0


def test_a_connection_that_never_sends_has_the_time_of_a_head(
    serve: Serve, connect: Connect
) -> None:
    server = serve(head_timeout=ENOUGH, keep_alive_timeout=LONG)
    fresh, used, blank = connect(server), connect(server), connect(server)
    assert used.get().status == 200
    blank.send(b"\r\n")  # RFC 9112 section 2.2: no byte of a request
    assert fresh.ended()
    assert blank.ended()
    assert server.stats().timeouts_total == 0
    assert used.get().status == 200, "later ones have the time between requests"


def test_a_client_that_does_not_read_is_closed(serve: Serve, connect: Connect) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(bytes(16 << 20)))
    server = serve(handler, write_timeout=SHORT)
    client = connect(server, receive_buffer=4096)
    client.send(encode())
    wait_until(lambda: server.stats().connections_open == 1, "it is accepted")
    wait_until(lambda: server.stats().connections_open == 0, "it is closed")
    assert server.stats().timeouts_total == 1


@any_version
def test_a_client_that_does_not_read_its_stream_is_closed(serve: Serve, connect: Connect) -> None:
    stream, cancelled = BodyStream(), threading.Event()
    stream.on_cancel(lambda reason: cancelled.set())
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(stream))
    client = connect(serve(handler, write_timeout=SHORT, high_water=1 << 30), receive_buffer=4096)
    client.send(encode())
    client.reply_head()
    stream.write(bytes(16 << 20))
    assert cancelled.wait(PATIENCE)


@any_version
def test_a_client_that_reads_slowly_but_reads_is_served(serve: Serve, connect: Connect) -> None:
    size = 4 << 20
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(bytes(size)))
    client = connect(serve(handler, write_timeout=ENOUGH), receive_buffer=4096)
    client.send(encode())
    pause = threading.Event()
    head = client.reply_head()
    assert head.status == 200
    for _ in range(16):
        client.exactly(size // 16)
        pause.wait(SHORT / 2)


def test_a_steady_reader_is_served_although_the_socket_is_not_writable(
    serve: Serve, connect: Connect
) -> None:
    """It is writable again only after a third of the kernel's buffer, megabytes here, has left."""
    size, part, parts = 32 << 20, 16 << 10, 60  # a record of TLS at a time
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(bytes(size)))
    server = serve(handler, write_timeout=ENOUGH)
    client = connect(server, receive_buffer=4096)
    client.send(encode())
    assert client.reply_head().status == 200
    pause = threading.Event()
    for _ in range(parts):
        client.exactly(part)
        pause.wait(SHORT / 5)
    assert len(client.exactly(size - parts * part)) == size - parts * part


@pytest.mark.parametrize("rate", [1, 0], ids=["below-the-rate", "nothing-at-all"])
def test_a_reader_below_the_minimum_rate_is_cut(serve: Serve, connect: Connect, rate: int) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(bytes(64 << 20)))
    server = serve(handler, write_timeout=3 * SHORT, min_rate=rate << 30)
    client = connect(server)
    client.send(encode())
    client.reply_head()
    pause = threading.Event()
    with pytest.raises((ConnectionError, EOFError)):
        for _ in range(1000):
            if rate:
                client.exactly(64 << 10)
            pause.wait(SHORT / 5)
            assert client.socket.send(b"") == 0
            if server.stats().connections_open == 0:
                client.exactly(64 << 20)
    assert server.stats().timeouts_total == 1


def test_the_lingering_read_is_bounded_in_time(serve: Serve, connect: Connect) -> None:
    server = serve(linger_timeout=SHORT)
    client = connect(server)
    client.send(b"NONSENSE\r\n\r\n")
    assert client.reply().status == 400
    wait_until(lambda: server.stats().connections_open == 0, "it is closed")


@any_version
def test_no_deadline_while_a_handler_runs(serve: Serve, connect: Connect) -> None:
    gate = Gate()
    handler = HttpHandler()
    handler.get("/", gate)
    timeouts = ("head_timeout", "body_timeout", "keep_alive_timeout", "write_timeout")
    client = connect(serve(handler, **dict.fromkeys(timeouts, ENOUGH)))
    client.send(encode())
    gate.wait_entered()
    threading.Timer(1.5 * ENOUGH, gate.opened.set).start()
    assert client.reply().body == b"through"


@any_version
@pytest.mark.parametrize("kind", ["deferred", "stream"])
def test_no_deadline_while_a_response_is_being_made(
    serve: Serve, connect: Connect, kind: str
) -> None:
    stream, deferred = BodyStream(), DeferredResponse()
    handler = basic_handler()
    handler.get("/deferred", lambda request: deferred)
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    timeouts = ("head_timeout", "body_timeout", "keep_alive_timeout", "write_timeout")
    client = connect(serve(handler, **dict.fromkeys(timeouts, ENOUGH)))
    client.send(encode(path=f"/{kind}"))

    def finish() -> None:
        deferred.resolve(HttpResponse.text("made"))
        stream.write(b"made")
        stream.close()

    threading.Timer(1.5 * ENOUGH, finish).start()
    assert client.reply().body == b"made"


def test_a_connection_with_a_longer_deadline_outlives_the_sweeps(
    serve: Serve, connect: Connect
) -> None:
    server = serve(head_timeout=ENOUGH, keep_alive_timeout=LONG)
    idle = connect(server)
    assert idle.get().status == 200
    for _ in range(3):
        slow = connect(server)
        slow.send(b"G")
        assert slow.reply().status == 408
    assert idle.get().status == 200


STOPPED = """
import sys

from cllm.http import HttpHandler, HttpResponse, Server, ServerConfig, acceptor

acceptor.SWEEP_PART = 1.0  # one second between two sweeps
handler = HttpHandler()
handler.get("/", lambda request: HttpResponse(200, (), b"served"))
server = Server(handler, "127.0.0.1", 0, ServerConfig(head_timeout=1.0))
server.start()
print(server.port, flush=True)
sys.stdin.read()
server.stop()
"""


def test_what_arrived_while_the_process_was_stopped_is_in_time() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process:
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\n")
            process.send_signal(signal.SIGSTOP)
            client.sendall(b"Host: x\r\n\r\n")
            time.sleep(3.0)  # the deadline passes, and two sweeps are missed
            process.send_signal(signal.SIGCONT)
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
