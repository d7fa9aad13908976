"""What a client has to send in time, and what has no deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cllm.http import (
    DeferredResponse,
    HttpHandler,
    HttpResponse,
)
from cllm.http.connection import NEVER
from cllm.http.http2.inbound import TURN_REQUESTS
from tests.http.http2.conftest import protocol_of
from tests.http.http2.http2_wire import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    SETTINGS_TIMEOUT,
    Http2Client,
    frame,
    request_fields,
    settings,
    uint32,
)
from tests.http.http_wire import Gate, Serve, basic_handler, wait_until

Connect = Callable[..., Http2Client]


def test_settings_have_to_be_acknowledged(
    serve: Serve, http2: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllm.http.http2.http2.SETTINGS_TIMEOUT", 0.1)
    server = serve(head_timeout=0.5)
    client = http2(server)
    client.acks = False
    *_, last = client.all_frames()
    assert (last.kind, last.code) == (GOAWAY, SETTINGS_TIMEOUT)
    assert server.stats().http2_limits == {"settings_timeout": 1}


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(PREFACE[:20], id="the preface"),
        pytest.param(PREFACE, id="SETTINGS"),
        pytest.param(PREFACE + frame(SETTINGS, 0, 0) + b"\0\0\5", id="a frame"),
        pytest.param(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1), id="a head"),
    ],
)
def test_what_has_begun_must_go_on(serve: Serve, http2: Connect, start: bytes) -> None:
    server = serve(head_timeout=0.2)
    client = http2(server, greet=False)
    client.acks = False
    client.send(start)
    *_, last = client.all_frames()
    assert (last.kind, last.code) == (GOAWAY, PROTOCOL_ERROR)
    assert server.stats().timeouts_total == 1


def test_frames_that_end_within_a_read_may_take_longer(serve: Serve, http2: Connect) -> None:
    """Each part that arrives has the end of a frame and the beginning of the next one."""
    client = http2(serve(head_timeout=1.0))
    client.send(client.headers(1, request_fields("POST", "/echo"), ended=False))
    client.settled()
    data = frame(DATA, 0, 1, b"x" * 91) * 8 + frame(DATA, END_STREAM, 1, b"end")
    client.send(data[:50])
    for at in range(50, len(data), 100):
        threading.Event().wait(0.2)
        client.send(data[at : at + 100])
    assert client.reply(1).body == b"x" * 728 + b"end"


def test_what_the_server_does_not_read_has_no_deadline(serve: Serve, http2: Connect) -> None:
    """The client has sent its requests whole, and reads the responses late."""
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse(204, [("x-a", "b" * 12_000)]))
    server = serve(handler, head_timeout=0.2)
    client = http2(server, receive_buffer=4096)
    asked = [client.take_stream() for _ in range(600)]
    client.send(b"".join(client.headers(each, request_fields()) for each in asked))
    threading.Event().wait(0.6)
    assert all(client.reply(each).status == 204 for each in asked)
    assert server.stats().timeouts_total == 0


def test_the_deadline_of_a_frame_ends_with_it_although_the_connection_does_not_park(
    serve: Serve, http2: Connect
) -> None:
    """A handler blocks it, and then it has more to do than fits in a turn."""
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler, head_timeout=0.2, workers=1)
    client = http2(server)
    client.settled()
    blocking = client.take_stream()
    data = client.headers(blocking, request_fields("GET", "/gate"))
    asked = [client.take_stream() for _ in range(3 * TURN_REQUESTS)]
    data += b"".join(client.headers(each, request_fields()) for each in asked)
    client.send(data[:5])
    (connection,) = server._connections.values()
    wait_until(lambda: protocol_of(server)._incomplete_by != NEVER, "the deadline is set")
    client.send(data[5:])
    gate.wait_entered()
    wait_until(lambda: connection.attention, "the deadline has passed")
    gate.opened.set()
    assert client.reply(blocking).body == b"through"
    assert all(client.reply(each).body == b"root" for each in asked)
    assert server.stats().timeouts_total == 0


def test_settings_have_their_time_from_when_they_are_sent(
    serve: Serve, http2: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllm.http.http2.http2.SETTINGS_TIMEOUT", 1.0)
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler, head_timeout=0.2)
    client = http2(server, greet=False)
    request = client.headers(client.take_stream(), request_fields("GET", "/gate"))
    client.send(PREFACE + settings() + request)
    gate.wait_entered()
    threading.Event().wait(1.2)
    gate.opened.set()
    assert client.reply(1).body == b"through"
    client.settled()
    assert server.stats().http2_limits == {}


def test_a_body_must_go_on(serve: Serve, http2: Connect) -> None:
    server = serve(body_timeout=0.2)
    client = http2(server)
    client.send(client.headers(1, request_fields("POST", "/echo"), ended=False))
    client.next_stream = 3
    assert client.request().body == b"root"
    assert client.reply(1).status == 408
    assert client.request().body == b"root"
    assert server.stats().timeouts_total == 1


def test_a_body_may_be_as_slow_as_in_http_1(serve: Serve, http2: Connect) -> None:
    """A frame of it takes longer than a head may, and than a body without progress."""
    client = http2(serve(head_timeout=0.3, body_timeout=0.6, min_rate=1000))
    client.send(client.headers(1, request_fields("POST", "/echo"), ended=False))
    data = frame(DATA, END_STREAM, 1, b"x" * 8000)
    for at in range(0, len(data), 400):
        client.send(data[at : at + 400])
        threading.Event().wait(0.1)  # 4 kB/s
    assert client.reply(1).body == b"x" * 8000


def test_a_frame_of_a_body_must_go_on(serve: Serve, http2: Connect) -> None:
    client = http2(serve(body_timeout=0.2))
    client.send(client.headers(1, request_fields("POST", "/echo"), ended=False))
    client.send(frame(DATA, END_STREAM, 1, b"x" * 8000)[:4000])
    assert client.reply(1).status == 408


def test_a_stream_that_was_reset_leaves_no_deadline(serve: Serve, http2: Connect) -> None:
    """It was the only one that waited for the connection's window."""
    deferred = DeferredResponse()
    handler = basic_handler()
    handler.get("/long", lambda request: b"x" * 100_000)
    handler.get("/later", lambda request: deferred)
    client = http2(serve(handler, write_timeout=0.2), s4=1 << 20)
    client.updates = False
    later, long = client.open("GET", "/later"), client.open("GET", "/long")
    while len(client.replies[long].so_far if long in client.replies else b"") < 65535:
        client.frame()
    client.send(frame(RST_STREAM, 0, long, uint32(8)))
    client.settled()
    threading.Event().wait(0.5)
    client.settled()
    deferred.resolve(HttpResponse.empty())
    assert client.reply(later).status == 204
