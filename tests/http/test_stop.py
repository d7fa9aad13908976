"""stop(): requests in flight finish, streams end properly, threads join, the port is free."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Server,
    ServerConfig,
)
from cllm.http import server as http_server
from tests.http.http_wire import (
    HTTP_1,
    PATIENCE,
    Connect,
    Gate,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    server_threads,
    wait_until,
)

PROTOCOLS = HTTP_1

GRACE = 60.0  # s; longer than the test may take: what ends has ended by itself


def stopping(server: Server, grace: float = GRACE) -> threading.Thread:
    """stop() in a thread of its own, begun: new connections are refused."""
    thread = threading.Thread(target=server.stop, args=(grace,))
    thread.start()
    wait_until(lambda: not can_connect(server.port), "new connections are refused")
    return thread


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:  # it waited to be accepted when the listener closed
        return True
    return True


def ended(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


@any_version
def test_it_joins_every_thread_and_frees_the_port(serve: Serve, connect: Connect) -> None:
    server = serve(workers=16)
    connect(server).get()
    server.stop()
    assert server_threads() == []
    with Server(basic_handler(), "127.0.0.1", server.port) as again:
        assert connect(again).get().status == 200


@any_version
def test_idle_connections_are_closed_at_once(serve: Serve, connect: Connect) -> None:
    server = serve()
    fresh, used = connect(server), connect(server)
    used.get()
    wait_until(lambda: server.stats().accepted_total == 2, "both are accepted")
    assert ended(stopping(server))
    assert fresh.ended()
    assert used.ended()


@any_version
def test_a_running_handler_may_finish(serve: Serve, connect: Connect, protocol: str) -> None:
    gate = Gate()
    handler = HttpHandler()
    handler.get("/", gate)
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    gate.wait_entered()
    thread = stopping(server)
    assert not server.is_running
    gate.opened.set()
    reply = client.reply()
    assert reply.body == b"through"
    if protocol in HTTP_1:
        assert reply.headers["connection"] == "close"
    assert client.ended()
    assert ended(thread)


@any_version
def test_a_request_half_sent_may_finish(serve: Serve, connect: Connect) -> None:
    server = serve()
    in_head, in_body = connect(server), connect(server)
    assert [client.get().status for client in (in_head, in_body)] == [200, 200]  # no handshake
    head, body = encode(), encode("POST", "/echo", b"body")
    in_head.send(head[:10])
    in_body.send(body[:-2])
    wait_until(lambda: server.stats().parked == 2, "both are read")
    thread = stopping(server)
    in_head.send(head[10:])
    in_body.send(body[-2:])
    assert in_head.reply().body == b"root"
    assert in_body.reply().body == b"body"
    assert ended(thread)


@any_version
def test_a_deferred_response_and_a_stream_may_finish(
    serve: Serve, connect: Connect, protocol: str
) -> None:
    deferred, stream = DeferredResponse(), BodyStream()
    handler = HttpHandler()
    handler.get("/deferred", lambda request: deferred)
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    server = serve(handler)
    waiting, reading = connect(server), connect(server)
    waiting.send(encode(path="/deferred"))
    reading.send(encode(path="/stream"))
    reading.reply_head()
    wait_until(lambda: server.stats().requests_total == 2, "both are asked")
    thread = stopping(server)
    stream.write(b"more")
    assert reading.chunk() == b"more"
    stream.close()
    deferred.resolve(HttpResponse.text("made"))
    assert reading.chunk() == b""
    assert reading.ended()
    reply = waiting.reply()
    assert reply.body == b"made"
    if protocol in HTTP_1:
        assert reply.headers["connection"] == "close"
    assert ended(thread)


@any_version
def test_a_large_response_may_finish(serve: Serve, connect: Connect) -> None:
    body = bytes(16 << 20)
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(body))
    server = serve(handler)
    client = connect(server, receive_buffer=4096)
    client.send(encode())
    client.wait_begun()
    thread = stopping(server)
    assert client.reply().body == body
    assert ended(thread)


@any_version
def test_past_the_grace_period_a_stream_ends_with_its_last_event(
    serve: Serve, connect: Connect
) -> None:
    stream, cancelled = EventStream(), threading.Event()
    stream.on_cancel(lambda reason: cancelled.set())
    handler = HttpHandler()
    handler.get_streaming("/", lambda request: stream)
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    client.reply_head()
    server.stop(grace=0)
    assert client.chunk() == stream.end_event("the server is stopping") != b""
    assert client.chunk() == b""
    assert client.ended()
    assert cancelled.is_set()


@any_version
def test_past_the_grace_period_a_stream_without_a_last_event_is_broken_off(
    serve: Serve, connect: Connect
) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(BodyStream()))
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    client.reply_head()
    server.stop(grace=0)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.chunk()


@any_version
def test_past_the_grace_period_a_deferred_response_is_cancelled_and_answered_503(
    serve: Serve, connect: Connect, protocol: str
) -> None:
    deferred = DeferredResponse()
    reasons: list[str] = []
    deferred.on_cancel(reasons.append)
    handler = HttpHandler()
    handler.get("/", lambda request: deferred)
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    wait_until(lambda: server.stats().requests_total == 1, "it is asked")
    server.stop(grace=0)
    reply = client.reply()
    assert reply.status == 503
    if protocol in HTTP_1:
        assert reply.headers["connection"] == "close"
    assert "stopping" in reply.json()["error"]
    assert reasons == ["the server is stopping"]
    assert client.ended()


@any_version
def test_past_the_grace_period_a_stream_that_has_just_come_ends_with_its_last_event(
    serve: Serve, connect: Connect
) -> None:
    deferred, stream, gate = DeferredResponse(), EventStream(), Gate()
    handler = HttpHandler()
    handler.get("/", lambda request: deferred)
    handler.get("/gate", gate)
    server = serve(handler, workers=1)
    client, other = connect(server), connect(server)
    client.send(encode())
    wait_until(lambda: server.stats().requests_total == 1, "it is asked")
    other.send(encode(path="/gate"))
    gate.wait_entered()  # the only worker is held: response and end are seen together
    thread = stopping(server, grace=0)
    wait_until(lambda: server._context.ending, "the grace period is over")
    assert deferred.resolve(HttpResponse.sse(stream))
    gate.opened.set()
    assert client.reply_head().status == 200
    assert client.chunk() == stream.end_event("the server is stopping")
    assert client.chunk() == b""
    assert ended(thread)
    assert stream.cancelled


@any_version
def test_past_the_grace_period_a_client_that_does_not_read_is_cut(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "ENDING_TIME", 0.2)
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(bytes(16 << 20)))
    server = serve(handler)
    client = connect(server, receive_buffer=4096)
    client.send(encode())
    client.wait_begun()
    assert ended(stopping(server, grace=0))
    assert server.stats().connections_open == 0
    with pytest.raises((EOFError, ConnectionResetError)):
        client.exactly(16 << 20)


def test_a_handler_that_never_returns_does_not_hold_it_up(
    connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "ENDING_TIME", 0.2)
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = Server(handler, "127.0.0.1", 0, ServerConfig(workers=2))
    server.start()
    client = connect(server)
    client.send(encode(path="/gate"))
    gate.wait_entered()
    assert ended(stopping(server, grace=0))
    (left_behind,) = server_threads()
    assert f"{left_behind} is blocked in a handler" in caplog.text
    assert "in __call__" in caplog.text, "the log shows where it is held"
    with pytest.raises((EOFError, ConnectionResetError)):
        client.reply()
    with server:
        assert connect(server).get("/health").status == 200, "it starts again beside it"
    gate.opened.set()
    wait_until(lambda: server_threads() == [], "the thread left behind ends when it can")


@any_version
def test_stopping_twice_is_stopping_once(serve: Serve) -> None:
    server = serve()
    server.stop()
    server.stop()
    assert not server.is_running


def test_stopping_what_never_started_does_nothing() -> None:
    Server(basic_handler(), "127.0.0.1", 0).stop()


@any_version
def test_a_second_stop_waits_for_the_first(serve: Serve, connect: Connect) -> None:
    gate = Gate()
    handler = HttpHandler()
    handler.get("/", gate)
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    gate.wait_entered()
    first = stopping(server)
    second = threading.Thread(target=server.stop)
    second.start()
    gate.opened.set()
    assert ended(second)
    assert server_threads() == [], "it returned after the end, not before"
    assert ended(first)
    assert client.reply().status == 200


@any_version
def test_a_handler_may_stop_its_server_and_still_answers(
    serve: Serve, connect: Connect, protocol: str
) -> None:
    handler = HttpHandler()
    servers: list[Server] = []

    def shut_down(request: HttpRequest) -> str:
        servers[0].stop()
        return "stopping"

    handler.post("/shutdown", shut_down)
    servers.append(serve(handler))
    reply = connect(servers[0]).request("POST", "/shutdown")
    assert reply.body == b"stopping"
    if protocol in HTTP_1:
        assert reply.headers["connection"] == "close"
    servers[0].stop()  # waits for the one under way
    assert server_threads() == []


def test_stopping_under_load_cuts_off_no_response(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    for _ in range(5):
        server = Server(basic_handler(), "127.0.0.1", 0, ServerConfig(workers=8))
        server.start()
        served = threading.Semaphore(0)
        surprises: list[str] = []

        def visit(port: int, served: threading.Semaphore, surprises: list[str]) -> None:
            with RawClient(port) as client:
                while True:
                    try:
                        reply = client.get("/health")
                    except (EOFError, ConnectionResetError, BrokenPipeError):
                        if client.buffer:
                            surprises.append("a response was cut off")
                        return
                    if reply.status != 200:
                        surprises.append(f"status {reply.status}")
                    served.release()
                    if reply.headers["connection"] == "close":
                        return

        arguments = (server.port, served, surprises)
        threads = [threading.Thread(target=visit, args=arguments) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            assert served.acquire(timeout=PATIENCE)
        assert ended(stopping(server))
        for thread in threads:
            assert ended(thread)
        assert surprises == []
        assert server_threads() == []
    assert caplog.text == ""


@any_version
def test_a_late_wake_up_after_the_end_is_harmless(serve: Serve, connect: Connect) -> None:
    deferred, stream = DeferredResponse(), EventStream()
    handler = HttpHandler()
    handler.get("/deferred", lambda request: deferred)
    handler.get_streaming("/stream", lambda request: stream)
    server = serve(handler)
    clients = connect(server), connect(server)
    clients[0].send(encode(path="/deferred"))
    clients[1].send(encode(path="/stream"))
    wait_until(lambda: server.stats().requests_total == 2, "both are asked")
    server.stop(grace=0)
    assert not deferred.resolve(HttpResponse.text("late"))
    stream.close()


@any_version
def test_stop_returns_as_soon_as_all_is_done(serve: Serve, connect: Connect) -> None:
    server = serve()
    connect(server).get()
    begun = time.monotonic()
    server.stop(grace=1000)
    assert time.monotonic() - begun < PATIENCE
