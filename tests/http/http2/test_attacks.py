"""Clients that cost the server work without wanting an answer: each limit, on a socket."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Callable

import pytest

from cllm.http import (
    DeferredResponse,
    EventStream,
    HttpError,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Server,
)
from cllm.http.http2 import guards
from cllm.http.http2.errors import Http2ConnectionError
from cllm.http.http2.heads import HeadReader
from cllm.http.http2.hpack import encode_integer
from cllm.http.limits import Limits
from cllm.http.transport import PlainTransport
from tests.http.http2.conftest import protocol_of
from tests.http.http2.http2_wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Client,
    frame,
    request_fields,
    settings,
    uint32,
)
from tests.http.http_wire import Serve, basic_handler, wait_until

Connect = Callable[..., Http2Client]
Attack = Callable[[Http2Client], bytes]


def rapid_reset(c: Http2Client) -> bytes:
    """Requests that are reset in the same breath (CVE-2023-44487)."""
    parts: list[bytes] = []
    for _ in range(150):
        stream = c.take_stream()
        parts += (c.headers(stream, request_fields("GET", "/wait")),
                  frame(RST_STREAM, 0, stream, uint32(8)))  # fmt: skip
    return b"".join(parts)


def provoked_resets(c: Http2Client) -> bytes:
    """Requests whose streams the server is made to reset (CVE-2025-8671)."""
    parts: list[bytes] = []
    for _ in range(150):
        stream = c.take_stream()
        parts += (c.headers(stream, request_fields("GET", "/wait")),
                  frame(WINDOW_UPDATE, 0, stream, uint32(0)))  # fmt: skip
    return b"".join(parts)


def refused_streams(c: Http2Client) -> bytes:
    return b"".join(
        c.headers(c.take_stream(), request_fields("POST", "/echo"), ended=False) for _ in range(250)
    )


def open_body(c: Http2Client) -> bytes:
    return c.headers(c.take_stream(), request_fields("POST", "/echo"), ended=False)


ATTACKS: list[tuple[str, Attack, str]] = [
    ("requests that are reset at once", rapid_reset, "resets"),
    ("resets that the client provokes", provoked_resets, "resets"),
    ("streams past the limit", refused_streams, "resets"),
    ("PING", lambda c: frame(PING, 0, 0, b"12345678") * 300, "control_frames"),
    ("PING acknowledgements", lambda c: frame(PING, ACK, 0, b"12345678") * 300, "control_frames"),
    ("SETTINGS", lambda c: settings(s4=1) * 300, "control_frames"),
    ("SETTINGS acknowledgements", lambda c: frame(SETTINGS, ACK, 0) * 300, "control_frames"),
    ("PRIORITY", lambda c: frame(PRIORITY, 0, 1, uint32(3) + b"\0") * 300, "control_frames"),
    ("WINDOW_UPDATE", lambda c: frame(WINDOW_UPDATE, 0, 0, uint32(1)) * 300, "control_frames"),
    ("GOAWAY", lambda c: frame(GOAWAY, 0, 0, b"\0" * 8) * 300, "control_frames"),
    ("unknown frames", lambda c: frame(0xEE, 0, 0) * 300, "control_frames"),
    ("empty DATA", lambda c: open_body(c) + frame(DATA, 0, 1) * 300, "control_frames"),
    ("DATA of padding", lambda c: open_body(c) + frame(DATA, 8, 1, b"\0") * 300, "control_frames"),
    ("DATA of one byte", lambda c: open_body(c) + frame(DATA, 0, 1, b"x") * 35_000, "small_frames"),
    ("CONTINUATION", lambda c: frame(HEADERS, END_STREAM, 1) + 20 * frame(CONTINUATION, 0, 1),
     "continuations"),
    ("a head of many bytes", lambda c: frame(HEADERS, END_STREAM, 1, b"\0" * 16_000)
     + 3 * frame(CONTINUATION, 0, 1, b"\0" * 16_000), "head"),
]  # fmt: skip


@pytest.fixture
def server(serve: Serve) -> Server:
    handler = basic_handler()
    handler.get("/wait", lambda request: DeferredResponse())
    return serve(handler, workers=2)


@pytest.mark.parametrize(
    ("attack", "limit"), [pytest.param(attack, limit, id=name) for name, attack, limit in ATTACKS]
)
def test_the_connection_ends_and_others_are_served(
    server: Server, http2: Connect, attack: Attack, limit: str
) -> None:
    client, other = http2(server), http2(server)
    client.settled()
    client.send(attack(client))
    *_, last = client.all_frames()
    client.close()
    assert (last.kind, last.code) == (GOAWAY, ENHANCE_YOUR_CALM)
    assert server.stats().http2_limits[limit] == 1
    assert other.request().body == b"root"
    wait_until(lambda: server.stats().connections_open == 1, "the connection is closed")


def test_refusals_by_the_server_are_no_resets_by_the_client(serve: Serve, http2: Connect) -> None:
    """Each response comes before the end of its request, and the stream is reset behind it."""
    handler = basic_handler()

    def refuse(request: HttpRequest) -> None:
        raise HttpError(503, "busy")

    handler.add_check(refuse)
    server = serve(handler)
    client = http2(server)
    for _ in range(300):
        stream = client.take_stream()
        client.send(client.headers(stream, request_fields("POST", "/echo"), ended=False))
        assert client.reply(stream).status == 503
    client.settled()
    assert server.stats().http2_limits == {}


def test_streams_before_the_settings_were_read_are_refused_one_by_one(
    server: Server, http2: Connect
) -> None:
    """RFC 9113 section 5.1.2: their number is unlimited until then."""
    client = http2(server)
    asked = [client.take_stream() for _ in range(400)]
    client.send(b"".join(client.headers(each, request_fields("GET", "/wait")) for each in asked))
    refused = [client.until(RST_STREAM).code for _ in asked[100:]]
    assert refused == [REFUSED_STREAM] * 300
    assert client.request().reset == REFUSED_STREAM
    assert server.stats().http2_limits == {"streams": 301}


def test_ordinary_control_frames_are_earned_by_traffic(server: Server, http2: Connect) -> None:
    """Ten times the bucket, with a PING and two updates for each request."""
    client = http2(server)
    for _ in range(20):
        streams = [client.open() for _ in range(50)]
        client.send(frame(PING, 0, 0, b"12345678") * 50)
        for stream in streams:
            assert client.reply(stream).body == b"root"  # the client gives the window back
    assert server.stats().http2_limits == {}


def test_a_client_that_was_held_up_may_answer_all_that_it_missed(
    serve: Serve, http2: Connect
) -> None:
    stream = EventStream()
    handler = basic_handler()
    handler.get_streaming("/events", lambda request: stream)
    server = serve(handler)
    client = http2(server)
    client.updates = False
    events = client.open("GET", "/events")
    client.settled()
    for number in range(400):
        stream.write(b"data: %d\n\n" % number)
        assert client.until(DATA, events).payload == b"data: %d\n\n" % number
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(9)) * 400)
    client.send(frame(WINDOW_UPDATE, 0, events, uint32(9)) * 400)
    client.settled()
    stream.close()
    assert client.reply(events).body.count(b"data") == 400
    assert server.stats().http2_limits == {}


def test_a_client_cannot_save_up_control_frames_without_bound() -> None:
    limits = guards.Guards()
    limits.traffic(10 * guards.CONTROLS_EARNED)
    with pytest.raises(Http2ConnectionError):
        for _ in range(guards.CONTROLS_EARNED + 2 * guards.CONTROLS):
            limits.control()


def test_a_client_that_does_not_read_is_not_read(serve: Serve, http2: Connect) -> None:
    """What the server owes it takes a bounded memory: past it the client's socket fills up."""
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.text("a", headers=[("x-a", "b" * 50_000)]))
    client = http2(serve(handler, workers=1), receive_buffer=4096)
    upload = client.headers(1, request_fields("POST"), ended=False)
    downloads = [client.headers(2 * n + 3, request_fields()) for n in range(98)]
    client.send(upload + b"".join(downloads))
    client.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            client.send(frame(DATA, 0, 1, b"x" * 16384) * 10)


def test_a_client_that_does_not_read_loses_its_connection(serve: Serve, http2: Connect) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: b"x" * 20_000_000)
    server = serve(handler, write_timeout=0.2, high_water=1 << 30)
    client = http2(server, s4=1 << 30, receive_buffer=4096)
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(1 << 30)))
    client.open()
    wait_until(lambda: server.stats().timeouts_total == 1, "the write deadline passes")
    wait_until(lambda: server.stats().connections_open == 0, "it is closed")
    assert server.stats().clients_left_total == 1


def test_bodies_leave_the_memory_although_their_responses_are_not_read(
    serve: Serve, http2: Connect
) -> None:
    handler = basic_handler()
    handler.get("/head", lambda request: HttpResponse(204, [("x-a", "b" * 12_000)]))
    handler.post("/length", lambda request: str(len(request.body)))
    server = serve(handler, workers=1)
    client = http2(server, receive_buffer=65536)
    client.settled()
    outbox = protocol_of(server)._outbox
    (connection,) = server._connections.values()
    transport = connection.transport
    assert isinstance(transport, PlainTransport)
    transport._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # else it grows
    answered = 0

    def ask(method: str, path: str, body: bytes | None = None) -> None:
        nonlocal answered
        client.open(method, path, body)
        answered += 1
        wait_until(lambda: server.stats().requests_total == answered, "it is answered")
        wait_until(lambda: server.stats().parked == 1, "and what can leave has left")

    while outbox.size < 30_000:  # the sockets are full
        ask("GET", "/head")
    body = b"y" * 4_000_000
    ask("POST", "/length", body)
    tracemalloc.start()
    try:
        for _ in range(10):
            ask("POST", "/length", body)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outbox.size
    assert used < 2.5 * len(body)  # of the last one, perhaps: its parts and the whole


@pytest.mark.parametrize("high_water", [1 << 20, 1 << 30], ids=["not begun", "begun"])
def test_streams_that_are_reset_leave_the_memory(
    serve: Serve, http2: Connect, high_water: int
) -> None:
    """While the connection's window is closed."""
    handler = basic_handler()
    handler.get("/long", lambda request: HttpResponse.bytes(b"x" * 3_000_000))
    server = serve(handler, high_water=high_water)
    client = http2(server, s4=1 << 24)
    client.updates = False
    client.open("GET", "/long")
    client.settled()
    for _ in range(80):
        client.send(frame(RST_STREAM, 0, client.open("GET", "/long"), uint32(8)))
    client.settled()
    streams = protocol_of(server)._streams
    assert (len(streams.open), len(streams._waiting), len(streams._turns)) == (1, 0, 1)


def test_the_bucket_fills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(guards, "monotonic", lambda: now)
    limits = guards.Guards()
    for _ in range(guards.RESETS):
        limits.reset()
    with pytest.raises(Http2ConnectionError):
        limits.reset()
    now += 1
    for _ in range(guards.RESETS_PER_SECOND):
        limits.reset()
    with pytest.raises(Http2ConnectionError):
        limits.reset()
    now += 1000
    for _ in range(guards.RESETS):
        limits.reset()


def test_small_frames_are_paid_for_by_large_ones() -> None:
    limits = guards.Guards()
    for _ in range(100_000):
        limits.data(1)
        limits.data(2 * guards.SMALL_DATA)
    with pytest.raises(Http2ConnectionError):
        for _ in range(34_000):
            limits.data(1)


def test_a_head_in_many_small_blocks_is_no_attack(server: Server, http2: Connect) -> None:
    client = http2(server)
    block = client.block(request_fields())
    parts = [frame(HEADERS, END_STREAM, 1, block[:1])]
    parts += [frame(CONTINUATION, 0, 1, block[at : at + 1]) for at in range(1, 6)]
    client.send(b"".join(parts) + frame(CONTINUATION, END_HEADERS, 1, block[6:]))
    assert client.reply(1).body == b"root"


def test_the_memory_of_remembered_heads_is_bounded() -> None:
    """Blocks of a few indices stand for heads of 31 KiB."""
    pseudo = b"\x82\x86\x84\x01\x04test"
    large = b"\x40\x06cookie" + encode_integer(3900, 0x7F) + b"c" * 3900
    reader = HeadReader(Limits())
    reader.read(1, pseudo + large)
    tracemalloc.start()
    try:
        for number in range(200):
            head = reader.read(3, pseudo + b"\xbe" * 8 + b"\0\3x-n\3%03d" % number)
            assert len(head.headers["cookie"]) > 31_000
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 256 * 1024
