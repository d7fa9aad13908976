"""A connection's life; over 400 lines, since the cases share their handlers.

Keep-alive, pipelining, 100-continue, half-closed and lost clients.
"""

from __future__ import annotations

import errno
import gc
import socket
import ssl
import threading
from typing import Any
from uuid import uuid4

import pytest

from cllm.http import BodyStream, DeferredResponse, HttpHandler, HttpRequest, HttpResponse
from cllm.http import acceptor as acceptor_module
from cllm.http.connection import (
    QUEUED,
)
from cllm.http.stats import Counters
from tests.http.http_wire import (
    HTTP_1,
    HTTP_2,
    PATIENCE,
    Connect,
    Gate,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    wait_until,
)

PROTOCOLS = HTTP_1

# Keep-alive and pipelining


@any_version
def test_a_connection_serves_many_requests(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    for number in range(200):
        assert client.get(f"/path/{number}").body == str(number).encode()


@pytest.mark.parametrize(
    ("version", "headers", "stays"),
    [
        ("HTTP/1.1", {}, True),
        ("HTTP/1.1", {"Connection": "close"}, False),
        ("HTTP/1.0", {}, False),
        ("HTTP/1.0", {"Connection": "keep-alive"}, True),
    ],
)
def test_who_keeps_a_connection_open(
    serve: Serve, connect: Connect, version: str, headers: dict[str, str], stays: bool
) -> None:
    client = connect(serve())
    reply = client.request("GET", "/", headers=headers, version=version)
    assert reply.headers["connection"] == ("keep-alive" if stays else "close")
    if stays:
        assert client.get().status == 200
    else:
        assert client.ended()


@any_version
def test_pipelined_requests_are_answered_in_order(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    count = 500  # more than one turn takes
    client.send(b"".join(encode(path=f"/path/{number}") for number in range(count)))
    assert [client.reply().body for _ in range(count)] == [b"%d" % n for n in range(count)]


@any_version
def test_pipelined_requests_wait_for_a_deferred_response(serve: Serve, connect: Connect) -> None:
    waiting: list[DeferredResponse] = []
    given = threading.Event()

    def defer(request: HttpRequest) -> DeferredResponse:
        waiting.append(DeferredResponse())
        given.set()
        return waiting[-1]

    handler = basic_handler()
    handler.get("/later", defer)
    client = connect(serve(handler))
    client.send(encode(path="/later") + encode(path="/health"))
    assert given.wait(PATIENCE)
    client.send(encode(path="/path/third"))
    waiting[0].resolve(HttpResponse.text("first"))
    assert [client.reply().body for _ in range(3)] == [b"first", b'{"status":"healthy"}', b"third"]


@any_version
def test_pipelined_requests_wait_for_a_stream_and_do_not_end_it(
    serve: Serve, connect: Connect
) -> None:
    stream = BodyStream()
    handler = basic_handler()
    handler.get_streaming("/stream", lambda request: stream)
    client = connect(serve(handler))
    client.send(encode(path="/stream"))
    assert client.reply_head().status == 200
    client.send(encode(path="/health"))
    for number in range(20):
        stream.write(b"%d" % number)
        assert client.chunk() == b"%d" % number
        client.send(encode(path=f"/path/{number}"))
    stream.close()
    assert client.chunk() == b""
    assert client.reply().body == b'{"status":"healthy"}'
    assert [client.reply().body for _ in range(20)] == [b"%d" % n for n in range(20)]


@any_version
def test_a_request_may_come_byte_by_byte(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    for byte in encode("POST", "/echo", b"body"):
        client.send(bytes([byte]))
    assert client.reply().body == b"body"


def test_a_large_body_comes_back_whole(serve: Serve, connect: Connect) -> None:
    body = bytes(range(256)) * 4096 * 8  # 8 MiB
    client = connect(serve())
    sender = threading.Thread(target=client.send, args=(encode("POST", "/echo", body),))
    sender.start()
    assert client.reply().body == body
    sender.join(PATIENCE)


@any_version
def test_a_slow_reader_gets_a_large_response_whole(serve: Serve, connect: Connect) -> None:
    body = bytes(range(256)) * 4096 * 8
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(body))
    server = serve(handler, workers=1)
    client = connect(server, receive_buffer=4096)
    client.send(encode())
    other = connect(server)
    assert other.request("HEAD").status == 200, "a socket that is full holds no worker"
    assert client.reply().body == body
    assert client.request("HEAD").status == 200, "the connection goes on"


# 100-continue


@any_version
def test_100_continue_comes_before_the_body(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    head = encode("POST", "/echo", headers={"Content-Length": "4", "Expect": "100-continue"})
    for _ in range(2):
        client.send(head)
        invitation = client.reply_head()
        assert (invitation.status, invitation.headers) == (100, {})
        client.send(b"body")
        assert client.reply().body == b"body"


@any_version
def test_no_100_where_the_body_is_there_already(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    assert client.request("POST", "/echo", b"body", {"Expect": "100-continue"}).status == 200


@any_version
def test_no_100_for_a_body_that_is_refused(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    headers = {"Content-Length": str(1 << 40), "Expect": "100-continue"}
    assert client.request("POST", "/echo", headers=headers).status == 413


# Clients that half-close


@any_version
def test_a_client_that_half_closes_gets_its_response(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    client.send(encode("POST", "/echo", b"x" * 1000) + encode(path="/health"))
    client.half_close()
    assert client.reply().body == b"x" * 1000
    assert client.reply().status == 200
    assert client.ended()


def test_a_client_that_half_closes_gets_all_of_a_large_response(
    serve: Serve, connect: Connect
) -> None:
    body = b"x" * (8 << 20)
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(body))
    client = connect(serve(handler), receive_buffer=4096)
    client.send(encode())
    client.half_close()
    assert client.reply().body == body


# Clients that vanish


def vanish_politely(client: RawClient) -> None:
    client.close()


def vanish_with_a_reset(client: RawClient) -> None:
    client.reset()


ways = pytest.mark.parametrize("vanish", [vanish_politely, vanish_with_a_reset])


@any_version
@ways
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha",
    ],
    ids=["idle", "in-head", "in-body", "in-chunk"],
)
def test_one_that_vanishes_before_a_request_is_complete(
    serve: Serve, connect: Connect, vanish: type, sent: bytes
) -> None:
    server = serve()
    client = connect(server)
    client.send(sent)
    wait_until(lambda: server.stats().connections_open == 1, "it is accepted")
    vanish(client)
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    assert server.stats().requests_total == 0
    assert connect(server).get().status == 200


@any_version
@ways
def test_one_that_vanishes_while_its_handler_runs(
    serve: Serve, connect: Connect, vanish: type
) -> None:
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler)
    client = connect(server)
    client.send(encode(path="/gate"))
    gate.wait_entered()
    vanish(client)
    gate.opened.set()
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    assert connect(server).get().status == 200


@any_version
@ways
@pytest.mark.parametrize("pipelined", [b"", encode(path="/health")], ids=["alone", "pipelined"])
def test_one_that_vanishes_cancels_its_deferred_response(
    serve: Serve, connect: Connect, protocol: str, vanish: type, pipelined: bytes
) -> None:
    deferred = DeferredResponse()
    asked, cancelled = threading.Event(), threading.Event()

    def defer(request: HttpRequest) -> DeferredResponse:
        asked.set()
        return deferred

    deferred.on_cancel(lambda reason: cancelled.set())
    handler = basic_handler()
    handler.get("/later", defer)
    server = serve(handler)
    client = connect(server)
    client.send(encode(path="/later"))
    assert asked.wait(PATIENCE)
    client.send(pipelined)
    vanish(client)
    assert cancelled.wait(PATIENCE)
    assert deferred.cancel_reason == "the client left"
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    assert not deferred.resolve(HttpResponse.text("too late"))
    # HTTP/2 serves them side by side; the second response may not have left either.
    most = 2 if pipelined and protocol in HTTP_2 else 1
    assert 1 <= server.stats().clients_left_total <= most


@any_version
@ways
@pytest.mark.parametrize("pipelined", [b"", encode(path="/health")], ids=["alone", "pipelined"])
def test_one_that_vanishes_cancels_its_stream_although_nothing_is_written(
    serve: Serve, connect: Connect, vanish: type, pipelined: bytes
) -> None:
    stream, cancelled = BodyStream(), threading.Event()
    stream.on_cancel(lambda reason: cancelled.set())
    handler = basic_handler()
    handler.get_streaming("/stream", lambda request: stream)
    server = serve(handler)
    client = connect(server)
    client.send(encode(path="/stream"))
    client.reply_head()
    client.send(pipelined)
    vanish(client)
    assert cancelled.wait(PATIENCE)
    assert stream.cancel_reason == "the client left"
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")


@any_version
@ways
def test_one_that_vanishes_in_a_large_response(
    serve: Serve, connect: Connect, vanish: type
) -> None:
    handler = basic_handler()
    handler.get("/large", lambda request: HttpResponse.bytes(bytes(16 << 20)))
    server = serve(handler)
    client = connect(server, receive_buffer=4096)
    client.send(encode(path="/large"))
    client.exactly(1000)
    vanish(client)
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    assert connect(server).get().status == 200


@ways
def test_one_that_vanishes_during_the_lingering_read(
    serve: Serve, connect: Connect, vanish: type
) -> None:
    server = serve(linger_timeout=60.0)
    client = connect(server)
    client.send(b"NONSENSE\r\n\r\n")
    assert client.reply().status == 400
    vanish(client)
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")


@any_version
def test_a_producer_that_gives_up_is_answered_for(serve: Serve, connect: Connect) -> None:
    deferred = DeferredResponse()
    handler = basic_handler()
    handler.get("/later", lambda request: deferred.then(lambda response: response))
    server = serve(handler)
    client = connect(server)
    client.send(encode(path="/later"))
    wait_until(lambda: server.stats().parked == server.stats().requests_total == 1, "it waits")
    assert deferred.cancel("no room")
    reply = client.reply()
    assert (reply.status, reply.json()["error"]) == (503, "no room")
    assert client.get().status == 200


# Ends after an error


def test_an_error_response_is_seen_although_the_client_goes_on_sending(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve())
    client.send(encode("POST", "/echo", headers={"Content-Length": str(1 << 40)}))
    client.send(bytes(512 * 1024))
    assert client.reply().status == 413
    assert client.rest() == b"", "an end, not a reset"


def test_bytes_after_a_last_request_do_not_take_its_response_back(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve())
    client.send(encode(headers={"Connection": "close"}) + encode() * 100)
    assert client.reply().body == b"root"
    assert client.rest() == b"", "an end, not a reset"


def test_nor_do_bytes_that_come_while_it_is_made(serve: Serve, connect: Connect) -> None:
    gate = Gate()
    handler = HttpHandler()
    handler.get("/gate", gate)
    client = connect(serve(handler))
    client.send(encode(path="/gate", headers={"Connection": "close"}))
    gate.wait_entered()
    client.send(encode() * 100)
    gate.opened.set()
    assert client.reply().status == 200
    assert client.rest() == b"", "an end, not a reset"


def test_the_lingering_read_is_bounded_in_bytes(serve: Serve, connect: Connect) -> None:
    server = serve(linger_timeout=60.0)
    client = connect(server)
    client.send(b"NONSENSE\r\n\r\n")
    with pytest.raises((ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)):
        for _ in range(1000):
            client.send(bytes(1 << 20))
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")


def test_counters_start_at_nothing() -> None:
    assert Counters() == Counters(0, 0, 0, 0, {})


# What is kept


@any_version
@pytest.mark.parametrize("kind", ["deferred", "stream", "slow reader"])
def test_a_parked_connection_keeps_no_body(serve: Serve, connect: Connect, kind: str) -> None:
    deferred, stream = DeferredResponse(), BodyStream()

    def answer(request: HttpRequest) -> HttpResponse | DeferredResponse:
        if kind == "deferred":
            return deferred
        if kind == "stream":
            return HttpResponse.stream(stream)
        return HttpResponse.bytes(bytes(32 << 20))

    handler = HttpHandler()
    handler.post("/", answer)
    server = serve(handler)
    client = connect(server, receive_buffer=4096)
    body = uuid4().hex.encode() * 8192
    client.send(encode("POST", "/", body))
    wait_until(
        lambda: server.stats().requests_total == 1 and server.stats().parked == 1, "it is parked"
    )
    objects = gc.get_objects()
    assert not [o for o in objects if isinstance(o, HttpRequest) and o.body == body]
    if kind == "deferred":
        deferred.resolve(HttpResponse.text("done"))
        assert client.reply().body == b"done"


@any_version
def test_whoever_holds_a_request_keeps_its_body(serve: Serve, connect: Connect) -> None:
    deferred, held = DeferredResponse(), []

    def answer(request: HttpRequest) -> DeferredResponse:
        held.append(request)
        return deferred

    handler = HttpHandler()
    handler.post("/", answer)
    server = serve(handler)
    client = connect(server)
    client.send(encode("POST", "/", b"late"))
    wait_until(lambda: server.stats().parked == 1 and bool(held), "it is parked")
    deferred.resolve(HttpResponse.bytes(held[0].body))  # as another thread does that reads it now
    assert client.reply().body == b"late"


# A descriptor's number is used again


@any_version
def test_an_old_event_for_a_new_connections_number_harms_nobody(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    poller = server._poller
    register = poller.register

    class Late:
        """Between the table and the poller, an event arrives for the number."""

        def register(self, fd: int, interest: int) -> None:
            server._acceptor.queue._dispatch([(fd, 1)])
            connection = server._connections[fd]
            assert connection.state is not QUEUED, "no worker may have it yet"
            register(fd, interest)

    server._poller = Late()  # type: ignore[assignment]
    try:
        for _ in range(20):
            client = connect(server)
            assert client.get("/health").status == 200
            assert client.get("/health").status == 200
    finally:
        server._poller = poller
    assert [r.message for r in caplog.records if r.levelname in ("ERROR", "WARNING")] == []


@any_version
def test_a_connection_that_was_reset_before_it_was_admitted_costs_only_itself(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # macOS's setsockopt(2) answers EINVAL then; Linux's does not.
    failures = iter([OSError(errno.EINVAL, "Invalid argument")] * 3)

    class Socket(socket.socket):
        def setsockopt(self, level: int, *arguments: Any) -> None:
            if level == socket.IPPROTO_TCP and (failure := next(failures, None)) is not None:
                raise failure
            super().setsockopt(level, *arguments)

    server = serve()
    monkeypatch.setattr(socket, "socket", Socket)
    for _ in range(3):
        with RawClient(server.port) as client:
            assert client.ended()
    assert connect(server).get("/health").status == 200
    assert "not accepting" not in caplog.text


@pytest.mark.parametrize("code", [errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ENONET])
def test_a_network_error_that_accept_passes_on_does_not_pause_accepting(code: int) -> None:
    assert code in acceptor_module._PEER_FAULTS
