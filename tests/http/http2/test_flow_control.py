"""Flow control (RFC 9113 sections 5.2, 6.9): both directions, turns, and the memory it bounds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.http import (
    BodyStream,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    StreamClosed,
)
from cllm.http.http2.outbox import FULL
from cllm.http.http2.windows import ReceiveWindow
from tests.http.http2.conftest import protocol_of
from tests.http.http2.http2_wire import (
    DATA,
    END_STREAM,
    GOAWAY,
    RST_STREAM,
    WINDOW_UPDATE,
    Http2Client,
    frame,
    request_fields,
    settings,
    uint32,
)
from tests.http.http_wire import PATIENCE, Serve, wait_until

Connect = Callable[..., Http2Client]


def handler_of(body: bytes) -> HttpHandler:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(body))
    handler.get("/small", lambda request: "small")
    handler.post("/length", lambda request: str(len(request.body)))
    return handler


# Responses


def comes(client: Http2Client, stream: int, size: int) -> bytes:
    """What comes of a body: at least `size` bytes, and all that the server sends by itself."""
    while len(client.replies[stream].so_far) < size:
        client.frame()
    client.settled()
    return client.replies[stream].so_far


def test_6_9_1_a_response_stays_within_the_windows(serve: Serve, http2: Connect) -> None:
    body = bytes(range(256)) * 1000
    client = http2(serve(handler_of(body)), s4=1000)
    client.updates = False
    stream = client.open()
    assert client.first_data(stream) == body[:1000]
    assert comes(client, stream, 1000) == body[:1000], "the stream's window is closed"
    client.send(frame(WINDOW_UPDATE, 0, stream, uint32(1)))
    assert comes(client, stream, 1001) == body[:1001]
    client.send(settings(s4=500) + frame(WINDOW_UPDATE, 0, stream, uint32(600)))
    assert comes(client, stream, 1101) == body[:1101], "6.9.2: the settings took 500 away"
    client.send(settings(s4=200_000))
    assert comes(client, stream, 65535) == body[:65535], "the connection's window is closed"
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(1 << 20)))
    client.send(frame(WINDOW_UPDATE, 0, stream, uint32(1 << 20)))
    assert client.reply(stream).body == body


def test_6_9_2_a_window_that_the_settings_make_negative_opens_again(
    serve: Serve, http2: Connect
) -> None:
    client = http2(serve(handler_of(b"x" * 100)), s4=60)
    client.updates = False  # before the data, which would be answered by another update
    stream = client.open()
    assert len(client.first_data(stream)) == 60
    client.send(settings(s4=0))  # the window is -60
    client.send(frame(WINDOW_UPDATE, 0, stream, uint32(60)))
    client.settled()
    assert len(client.replies[stream].so_far) == 60
    client.send(frame(WINDOW_UPDATE, 0, stream, uint32(40)))
    assert len(client.reply(stream).body) == 100


def test_an_empty_body_needs_no_window(serve: Serve, http2: Connect) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.bytes(b""))

    def nothing(request: HttpRequest) -> BodyStream:
        stream = EventStream()
        stream.close()
        return stream

    handler.get_streaming("/stream", nothing)
    client = http2(serve(handler), s4=0)
    assert client.request().status == 200
    assert client.request("GET", "/stream").status == 200


def test_a_stream_that_ends_at_a_closed_window_ends(serve: Serve, http2: Connect) -> None:
    stream = EventStream()
    handler = HttpHandler()
    handler.get_streaming("/", lambda request: stream)
    client = http2(serve(handler), s4=10)
    client.updates = False
    asked = client.open()
    stream.write(b"x" * 10)
    assert client.first_data(asked) == b"x" * 10
    stream.close()
    assert client.reply(asked).body == b"x" * 10


def test_responses_send_in_turns(serve: Serve, http2: Connect) -> None:
    body = b"x" * 1_000_000
    client = http2(serve(handler_of(body), high_water=1 << 30), s4=0)
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(1 << 30)))
    client.updates = False
    streams = [client.open() for _ in range(4)]
    client.send(settings(s4=1 << 30))
    for stream in streams:
        assert client.reply(stream).body == body
    order = [found.stream for found in client.seen if found.kind == DATA]
    first_end = min(len(order) - order[::-1].index(each) for each in streams)
    assert {*order[: first_end // 2]} == {*streams}, "all send from the beginning"


def test_a_closed_stream_window_holds_no_other_stream(serve: Serve, http2: Connect) -> None:
    client = http2(serve(handler_of(b"x" * 50_000)), s4=100)
    client.updates = False
    held = client.open()
    assert len(client.first_data(held)) == 100
    assert client.request("GET", "/small").body == b"small"


def test_requests_wait_while_much_is_held(serve: Serve, http2: Connect) -> None:
    """A client that opens a hundred streams and no window does not make a hundred bodies."""
    begun = []
    handler = HttpHandler()

    def big(request: HttpRequest) -> HttpResponse:
        begun.append(request.path)
        return HttpResponse.bytes(b"x" * 600_000)

    handler.get("/big", big)
    client = http2(serve(handler, high_water=1_000_000), s4=0)
    client.updates = False
    streams = [client.open("GET", "/big") for _ in range(20)]
    client.settled()
    assert len(begun) == 2
    client.send(frame(RST_STREAM, 0, streams[5], uint32(8)))  # one that waits
    client.updates = True
    client.send(settings(s4=1 << 20) + frame(WINDOW_UPDATE, 0, 0, uint32(1 << 24)))
    for stream in streams:
        if stream != streams[5]:
            assert len(client.reply(stream).body) == 600_000
    assert len(begun) == 19


def test_one_high_water_bounds_all_streams_of_a_connection(serve: Serve, http2: Connect) -> None:
    streams = [EventStream() for _ in range(10)]
    waiting = iter(streams)
    handler = HttpHandler()
    handler.get_streaming("/", lambda request: next(waiting))
    client = http2(serve(handler, high_water=100_000), s4=0)
    client.updates = False
    asked = [client.open() for _ in streams]
    client.settled()
    for stream in streams[:9]:
        stream.write(b"x" * 9_000)  # 81 000 in all, and no window is open
    client.settled()
    with pytest.raises(StreamClosed):
        for _ in range(100):
            streams[9].write(b"x" * 1_000)
    assert not any(stream.cancelled for stream in streams[:9])
    assert client.until(RST_STREAM).stream == asked[9]
    client.updates = True
    client.send(settings(s4=1 << 20))
    for stream, each in zip(streams[:9], asked[:9], strict=True):
        stream.close()
        assert len(client.reply(each).body) == 9_000


# Requests


def test_a_body_larger_than_every_window_arrives(serve: Serve, http2: Connect) -> None:
    client = http2(serve(handler_of(b"")))
    size, room, sent = 3_000_000, {0: 65535, 1: 0}, 0
    client.send(client.headers(1, request_fields("POST", "/length"), ended=False))
    client.until(4)  # SETTINGS
    room[1] = 256 * 1024
    updates = 0
    while sent < size:
        part = min(room[0], room[1], 16384, size - sent)
        if part == 0:
            update = client.until(WINDOW_UPDATE)
            room[update.stream] += int.from_bytes(update.payload, "big")
            updates += 1
            continue
        sent += part
        room[0] -= part
        room[1] -= part
        client.send(frame(DATA, END_STREAM if sent == size else 0, 1, b"x" * part))
    assert client.reply(1).body == b"3000000"
    assert updates < 60, "not one for each frame"


@given(st.lists(st.integers(1, 100), max_size=100))
def test_a_window_gives_back_what_it_took(sizes: list[int]) -> None:
    window = ReceiveWindow(1000)
    left = 1000  # as the client knows it
    for size in sizes:
        increment = window.receive(size)
        left += increment - size
        assert increment == 0 or increment >= 500
        assert left > 500


def test_bodies_count_in_the_servers_body_memory(serve: Serve, http2: Connect) -> None:
    from cllm.http import Limits

    server = serve(handler_of(b""), body_memory=200_000, limits=Limits(body=200_000))
    client = http2(server)
    fields = request_fields("POST", "/length")
    client.send(client.headers(1, fields, ended=False) + 9 * frame(DATA, 0, 1, b"x" * 16_000))
    wait_until(lambda: server.stats().body_bytes == 144_000, "the body is counted")
    client.send(client.headers(3, fields, ended=False) + 4 * frame(DATA, 0, 3, b"x" * 16_000))
    assert client.reply(3).status == 503
    assert client.replies[3].headers["retry-after"] == "1"
    client.send(frame(DATA, END_STREAM, 1))
    assert client.reply(1).body == b"144000"
    client.settled()
    assert server.stats().body_bytes == 0
    client.send(client.headers(5, fields, ended=False) + 2 * frame(DATA, 0, 5, b"x" * 16_000))
    wait_until(lambda: server.stats().body_bytes == 32_000, "the next is counted")
    client.close()
    wait_until(lambda: server.stats().body_bytes == 0, "a lost body is given back")


def test_bodies_of_requests_that_wait_count_too(serve: Serve, http2: Connect) -> None:
    """A body that came in one read is kept while other responses fill the bound of the streams."""
    from cllm.http import Limits

    server = serve(
        handler_of(b"x" * 1000), high_water=500, body_memory=70_000, limits=Limits(body=70_000)
    )
    client = http2(server, s4=0)
    client.updates = False
    held = client.open()
    waiting = [client.open("POST", "/length", b"x" * 16_384) for _ in range(2)]
    refused = client.open("POST", "/length", b"x" * 40_000)
    client.settled()
    assert server.stats().body_bytes == 32_768
    client.updates = True
    client.send(settings(s4=1 << 20))
    assert client.reply(refused).status == 503
    assert [client.reply(stream).body for stream in (held, *waiting)] == [
        b"x" * 1000, b"16384", b"16384",
    ]  # fmt: skip
    wait_until(lambda: server.stats().body_bytes == 0, "the memory is given back")
    client.send(settings(s4=0))
    client.open()
    waiting = [client.open("POST", "/length", b"x" * 16_384)]
    wait_until(lambda: server.stats().body_bytes == 16_384, "the next is counted")
    client.close()
    wait_until(lambda: server.stats().body_bytes == 0, "a lost body is given back")


# Deadlines of windows


def test_a_stream_whose_window_stays_closed_is_reset(serve: Serve, http2: Connect) -> None:
    cancelled = threading.Event()
    stream = EventStream()
    stream.on_cancel(lambda reason: cancelled.set())
    handler = handler_of(b"x" * 100_000)
    handler.get_streaming("/events", lambda request: stream)
    server = serve(handler, write_timeout=0.2)
    client = http2(server, s4=0)
    client.updates = False
    held = [client.open(), client.open("GET", "/events")]
    stream.write(b"data: 1\n\n")
    assert {client.until(RST_STREAM).stream, client.until(RST_STREAM).stream} == {*held}
    assert cancelled.wait(PATIENCE)
    client.send(settings(s4=100))
    assert client.request("GET", "/small").body == b"small"
    assert server.stats().http2_limits["closed_window"] == 2


def test_a_window_that_opens_by_a_byte_at_a_time_is_not_enough(
    serve: Serve, http2: Connect
) -> None:
    server = serve(handler_of(b"x" * 100_000), write_timeout=0.2, min_rate=500)
    client = http2(server, s4=1)
    client.updates = False
    stream = client.open()
    for _ in range(1000):
        if stream in client.ended:
            break
        client.send(frame(WINDOW_UPDATE, 0, stream, uint32(1)))
        client.frame()
        threading.Event().wait(0.01)  # 100 bytes/s, a fifth of the minimum
    assert client.replies[stream].reset is not None


def test_a_window_that_was_closed_and_is_open_has_no_deadline(serve: Serve, http2: Connect) -> None:
    """The connection's window lets little through, but enough."""
    server = serve(handler_of(b"x" * 100_000), write_timeout=0.5, min_rate=500)
    client = http2(server, s4=0)
    client.updates = False
    stream = client.open()
    client.settled()
    client.send(settings(s4=1 << 20))
    others = [client.open() for _ in range(3)]
    pause = threading.Event()
    for _ in range(15):
        client.send(frame(WINDOW_UPDATE, 0, 0, uint32(150)))
        pause.wait(0.1)
    client.settled()
    assert client.ended.isdisjoint((stream, *others))


def test_a_connection_whose_window_stays_closed_ends(serve: Serve, http2: Connect) -> None:
    server = serve(handler_of(b"x" * 100_000), write_timeout=0.2)
    client = http2(server, s4=1 << 20)
    client.updates = False
    client.open()
    *_, last = client.all_frames()
    assert last.kind == GOAWAY
    assert server.stats().http2_limits == {"closed_window": 1}


def test_a_client_that_reads_slowly_keeps_its_stream(serve: Serve, http2: Connect) -> None:
    server = serve(handler_of(b"x" * 4_000), write_timeout=0.5, min_rate=100)
    client = http2(server, s4=100)
    client.updates = False
    stream = client.open()
    while stream not in client.ended:
        client.send(frame(WINDOW_UPDATE, 0, stream, uint32(200)))
        client.frame()
        threading.Event().wait(0.05)  # 4 kB/s, and 1 s in all
    assert len(client.replies[stream].so_far) == 4_000


def test_the_end_of_a_stream_needs_no_window(serve: Serve, http2: Connect) -> None:
    """It comes while other data fills the outbox, and the stream's window is used up."""
    stream = BodyStream()
    handler = handler_of(b"x" * 8_000_000)
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    server = serve(handler, write_timeout=1.0)
    client = http2(server, receive_buffer=4096)
    client.updates = False
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(1 << 30)))
    ending = client.open("GET", "/stream")
    client.settled()
    stream.write(b"y" * 65535)
    while len(client.replies[ending].so_far if ending in client.replies else b"") < 65535:
        client.frame()
    other = client.open()
    client.send(frame(WINDOW_UPDATE, 0, other, uint32(1 << 30)))
    outbox = protocol_of(server)._outbox
    wait_until(lambda: outbox.size >= FULL, "the socket is full")
    stream.close()
    assert client.reply(ending).reset is None
    assert server.stats().http2_limits == {}


def test_a_response_counts_once_it_has_left_although_others_wait(
    serve: Serve, http2: Connect
) -> None:
    server = serve(handler_of(b"x" * 8_000_000), high_water=1 << 30)
    client = http2(server, receive_buffer=4096, s4=1 << 30)
    client.updates = False
    client.send(frame(WINDOW_UPDATE, 0, 0, uint32(1 << 30)))
    client.open()
    client.settled()
    outbox = protocol_of(server)._outbox
    wait_until(lambda: outbox.size >= FULL, "the socket is full")
    nothing = client.open("GET", "/nothing")
    assert client.reply(nothing).status == 404
    assert outbox.size > 0
    wait_until(lambda: server.stats().responses_by_status == {404: 1}, "it is counted")
