"""Limits as a client sees them: each status on the wire, and the server's capacity."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from cllm.http import (
    DeferredResponse,
    HttpResponse,
    HttpServerError,
    Limits,
    Server,
    ServerConfig,
    connection_room,
)
from tests.http.http_wire import (
    PATIENCE,
    Connect,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    server_threads,
    wait_until,
)

PROTOCOLS = ("http/1.1",)

SMALL = Limits(request_line=100, head=1000, fields=10, body=1000)

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"


REFUSED = [
    (400, b"GET / HTTP/1.1\r\n\r\n"),
    (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    (400, HEAD + b"Bad Name: x\r\n\r\n"),
    (400, POST + b"Content-Length: +1\r\n\r\n"),
    (400, POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (400, POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    (413, POST + b"Content-Length: 1001\r\n\r\n"),
    (413, POST + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n"),
    (414, b"GET /" + b"x" * 100 + b" HTTP/1.1\r\n"),
    (417, HEAD + b"Expect: a-miracle\r\n\r\n"),
    (431, HEAD + b"X: y\r\n" * 10 + b"\r\n"),
    (431, HEAD + b"X: " + b"y" * 1000),
    (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
]


@pytest.mark.parametrize(("status", "sent"), REFUSED)
@pytest.mark.parametrize("behind", [b"", encode()], ids=["first", "behind-another"])
def test_a_refused_request_has_its_status_a_json_body_and_ends_the_connection(
    serve: Serve, connect: Connect, status: int, sent: bytes, behind: bytes
) -> None:
    server = serve(limits=SMALL)
    client = connect(server)
    client.send(behind + sent)
    if behind:
        assert client.reply().status == 200
    reply = client.reply()
    assert reply.status == status
    assert reply.headers["connection"] == "close"
    answer = reply.json()
    assert answer["success"] is False
    assert answer["error"]
    assert client.ended()
    assert connect(server).get().status == 200


@pytest.mark.parametrize(("status", "sent"), REFUSED)
def test_no_refusal_of_head_has_a_body(
    serve: Serve, connect: Connect, status: int, sent: bytes
) -> None:
    """RFC 9110 section 9.3.2"""
    if sent.startswith(b"CONNECT "):
        pytest.skip("CONNECT is a method of its own")
    client = connect(serve(limits=SMALL))
    client.send(b"HEAD " + sent.partition(b" ")[2])
    answer = client.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\r\n\r\n") and answer.count(b"\r\n\r\n") == 1
    assert int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0]) > 0


@any_version
def test_what_just_fits_is_served(serve: Serve, connect: Connect) -> None:
    client = connect(serve(limits=SMALL))
    assert client.request("POST", "/echo", b"x" * 1000).body == b"x" * 1000
    assert client.get("/path/" + "x" * 81).status == 200  # a request line of 100 bytes


# Connections


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may take its time before it asks: no connection is closed for a new one."""
    monkeypatch.setattr(connection_room, "MIN_IDLE", 10 * PATIENCE)


@any_version
@pytest.mark.usefixtures("patient")
def test_at_the_limit_the_next_connection_waits_until_one_closes(
    serve: Serve, connect: Connect
) -> None:
    deferred = [DeferredResponse() for _ in range(5)]
    given = iter(deferred)
    handler = basic_handler()
    handler.get("/deferred", lambda request: next(given))
    server = serve(handler, max_connections=3)

    def asked(count: int) -> bool:
        return server.stats().requests_total == count

    clients = [connect(server) for _ in range(3)]
    for number, client in enumerate(clients, 1):
        client.send(encode(path="/deferred"))
        wait_until(partial(asked, number), "it waits for a response")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: connect(server).get())  # the kernel's backlog has it
        for one, client in zip(deferred[1:3], clients[1:], strict=True):
            one.resolve(HttpResponse.text("made"))
            assert client.reply().status == 200, "those it has are served"
            client.send(encode(path="/deferred"))  # and busy again
        assert server.stats().accepted_total == 3
        clients[0].close()
        assert waiting.result(PATIENCE).status == 200
    assert server.stats().accepted_total == 4


@any_version
@pytest.mark.usefixtures("patient")
def test_a_crowd_passes_through_a_small_limit(serve: Serve, connect: Connect) -> None:
    server = serve(max_connections=4)
    served = []

    def visit() -> None:
        for _ in range(20):
            with connect(server) as client:
                served.append(client.get().status)

    threads = [threading.Thread(target=visit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    assert served == [200] * 240


@contextlib.contextmanager
def no_descriptors_left(spare: int = 0) -> Iterator[None]:
    """Inside, this process can open `spare` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 64, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(spare):
            os.close(fillers.pop())
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_it_serves_what_it_has_and_accepts_when_one_closes(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server: Server = serve()
    first, second = connect(server), connect(server)
    assert [first.get().status, second.get().status] == [200, 200]
    with no_descriptors_left(spare=1):
        waiting = socket.create_connection(("127.0.0.1", server.port))  # the last descriptor
        waiting.settimeout(PATIENCE)
        waiting.sendall(encode())
        wait_until(lambda: "Too many open files" in caplog.text, "accept fails")
        for _ in range(20):
            assert first.get("/health").status == 200
        second.close()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200 OK")
        waiting.close()
    assert caplog.text.count("Too many open files") == 1, "it says so once, not in a loop"
    assert connect(server).get().status == 200


def test_without_descriptors_it_tries_again_by_itself(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server: Server = serve()
    client = connect(server)
    assert client.get().status == 200
    with no_descriptors_left(spare=1):
        waiting = socket.create_connection(("127.0.0.1", server.port))
        waiting.settimeout(PATIENCE)
        waiting.sendall(encode())
        wait_until(lambda: "Too many open files" in caplog.text, "accept fails")
    # Descriptors are free again, but none of the server's own connections closed.
    assert waiting.recv(100).startswith(b"HTTP/1.1 200 OK")
    waiting.close()


@pytest.mark.parametrize("spare", range(5))
def test_a_start_without_descriptors_is_refused_and_can_be_repeated(spare: int) -> None:
    server = Server(basic_handler(), "127.0.0.1", 0, ServerConfig(workers=1))
    with (
        no_descriptors_left(spare),
        pytest.raises(HttpServerError, match="Too many open files"),
    ):
        server.start()
    assert server_threads() == []
    with server, RawClient(server.port) as client:
        assert client.get().status == 200


def test_a_start_without_threads_is_refused_and_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "cllm-worker-2":
            raise RuntimeError("can't start new thread")  # the interpreter's own words
        start(thread)

    server = Server(basic_handler(), "127.0.0.1", 0, ServerConfig(workers=4))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(HttpServerError, match="can't start new thread"):
            server.start()
    assert server_threads() == []
    assert not server.is_running
    with server, RawClient(server.port) as client:
        assert client.get().status == 200
