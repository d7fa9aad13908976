"""Pings: a quiet event stream sends them, and no other response does."""

from __future__ import annotations

from functools import partial

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
)
from cllm.http.connection import IDLE
from cllm.http.sse import PING
from tests.http.http_wire import (
    HTTP_1,
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

OFTEN = 0.05  # s between two pings
LONG = 3600.0  # s; what is waited for this long does not come

CLIENT_EVENT = b"data: hello\n\n"


def answering(stream: BodyStream) -> HttpHandler:
    handler = basic_handler()
    handler.get("/sse", lambda request: HttpResponse.sse(stream))
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    return handler


def begin(client: RawClient, path: str = "/sse", version: str = "HTTP/1.1") -> None:
    client.send(encode(path=path, version=version))
    assert client.reply_head().status == 200


def test_a_ping_is_a_comment_that_a_client_ignores() -> None:
    assert PING == b": \n\n"


@any_version
def test_a_stream_that_has_not_begun_is_pinged_again_and_again(
    serve: Serve, connect: Connect
) -> None:
    stream = EventStream()
    client = connect(serve(answering(stream), sse_ping=OFTEN))
    begin(client)
    assert [client.chunk() for _ in range(3)] == [PING] * 3
    stream.write(CLIENT_EVENT)
    stream.close()
    pieces = list(iter(client.chunk, b""))
    assert pieces[-1] == CLIENT_EVENT and set(pieces[:-1]) <= {PING}
    assert client.get("/health").status == 200, "the connection goes on"


@any_version
def test_a_stream_that_falls_quiet_between_events_is_pinged(serve: Serve, connect: Connect) -> None:
    stream = EventStream()
    client = connect(serve(answering(stream), sse_ping=OFTEN))
    begin(client)
    for number in range(3):
        stream.send(f"{number}")
        while (piece := client.chunk()) == PING:
            pass
        assert piece == b"data: %d\n\n" % number
        assert client.chunk() == PING


def test_in_http_1_0_pings_have_no_chunks(serve: Serve, connect: Connect) -> None:
    stream = EventStream()
    client = connect(serve(answering(stream), sse_ping=OFTEN))
    begin(client, version="HTTP/1.0")
    assert client.exactly(2 * len(PING)) == 2 * PING
    stream.close()
    assert client.rest().replace(PING, b"") == b""


@any_version
def test_a_stream_may_have_a_ping_of_its_own(serve: Serve, connect: Connect) -> None:
    stream = EventStream()
    stream.ping = b"event: ping\ndata: {}\n\n"
    client = connect(serve(answering(stream), sse_ping=OFTEN))
    begin(client)
    assert client.chunk() == stream.ping


@any_version
@pytest.mark.parametrize("path", ["/sse", "/stream"])
def test_what_makes_a_stream_one_of_events_is_its_content_type(
    serve: Serve, connect: Connect, path: str
) -> None:
    # A plain stream is one when it is answered as one, an event stream however it is answered.
    stream = BodyStream() if path == "/sse" else EventStream()
    client = connect(serve(answering(stream), sse_ping=OFTEN))
    begin(client, path)
    assert client.chunk() == PING


@pytest.mark.parametrize("interval", [0, OFTEN])
def test_other_streams_are_not_pinged_nor_any_where_it_is_off(
    serve: Serve, connect: Connect, interval: float
) -> None:
    # The other stream of the same server tells how often a ping was due.
    watched, clock = (
        (EventStream(), EventStream()) if not interval else (BodyStream(), BodyStream())
    )
    handler = answering(watched)
    handler.get("/clock", lambda request: HttpResponse.sse(clock))
    server = serve(handler, sse_ping=interval)
    client, other = connect(server), connect(server)
    begin(client, "/sse" if not interval else "/stream")
    begin(other, "/clock")
    if interval:
        assert [other.chunk() for _ in range(5)] == [PING] * 5
    else:
        assert server._connections
        wait_until(lambda: server.stats().parked == 2, "both are parked")
        deadlines = {connection.deadline for connection in server._connections.values()}
        assert deadlines == {float("inf")}, "nothing is due"
    watched.write(b"data: x\n\n")
    watched.close()
    assert list(iter(client.chunk, b"")) == [b"data: x\n\n"]


@any_version
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_a_ping_never_stands_within_an_event(serve: Serve, connect: Connect, end: bytes) -> None:
    stream, clock = BodyStream(), EventStream()
    handler = answering(stream)
    handler.get("/clock", lambda request: HttpResponse.sse(clock))
    server = serve(handler, sse_ping=OFTEN)
    client, other = connect(server), connect(server)
    begin(client)
    begin(other, "/clock")
    stream.write(b"data: half")
    while (piece := client.chunk()) == PING:
        pass
    assert piece == b"data: half"
    assert [other.chunk() for _ in range(5)] == [PING] * 5, "pings are due meanwhile"
    stream.write(b" and half" + end)
    assert client.chunk() == b" and half" + end, "and nothing stood between the halves"
    assert client.chunk() == PING


def test_a_busy_stream_is_not_woken_for_pings(serve: Serve, connect: Connect) -> None:
    stream = EventStream()
    server = serve(answering(stream), sse_ping=LONG)
    client = connect(server)
    begin(client)
    (connection,) = server._connections.values()

    def put_off(before: float) -> bool:
        return before < connection.deadline < float("inf")

    for number in range(50):
        wait_until(lambda: connection.deadline < float("inf"), "a ping is due some time")
        before = connection.deadline
        stream.send(f"{number}")
        assert client.chunk() == b"data: %d\n\n" % number
        wait_until(
            partial(put_off, before),
            "the event puts it off",
        )


@any_version
def test_tokens_that_make_no_event_do_not_put_the_ping_off(serve: Serve, connect: Connect) -> None:
    class Silent(EventStream):
        """As a generation whose text a parser holds back: it wakes, and gives nothing."""

        taken = 0

        def take(self, most: int = 0) -> list[bytes]:
            super().take()
            self.taken += 1
            return []

    stream = Silent()
    server = serve(answering(stream), sse_ping=4 * OFTEN)
    client = connect(server)
    begin(client)
    client.socket.settimeout(OFTEN / 10)
    for _ in range(1000):
        stream.write(b"held back\n\n")
        try:
            piece = client.chunk()
        except TimeoutError:
            continue
        assert piece == PING
        break
    else:
        pytest.fail("no ping came while the stream was busy with nothing")
    assert stream.taken > 1


def test_a_client_that_does_not_read_is_cut_in_spite_of_pings(
    serve: Serve, connect: Connect
) -> None:
    reasons: list[str] = []
    stream = EventStream()
    stream.on_cancel(reasons.append)
    server = serve(answering(stream), sse_ping=OFTEN, write_timeout=4 * OFTEN, high_water=1 << 30)
    client = connect(server, receive_buffer=4096)
    begin(client)
    stream.write(b"data: %b\n\n" % bytes(16 << 20))  # more than the socket takes
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    assert reasons == ["the client does not read"]
    assert server.stats().timeouts_total == 1


def test_data_that_follows_a_ping_has_the_whole_write_timeout(
    serve: Serve, connect: Connect
) -> None:
    stream = EventStream()
    server = serve(answering(stream), sse_ping=OFTEN, write_timeout=LONG, high_water=1 << 30)
    client = connect(server, receive_buffer=4096)
    begin(client)
    assert client.chunk() == PING
    (connection,) = server._connections.values()
    stream.write(b"data: %b\n\n" % (b"x" * (16 << 20)))
    wait_until(lambda: connection.deadline > LONG / 2 and stream._pending == 0, "it is sending")
    while (piece := client.chunk()) == PING:
        pass
    assert len(piece) == 8 + (16 << 20)
    assert client.chunk() == PING


@any_version
def test_a_client_that_leaves_during_pings_is_noticed(serve: Serve, connect: Connect) -> None:
    stream = EventStream()
    server = serve(answering(stream), sse_ping=OFTEN)
    client = connect(server)
    begin(client)
    assert client.chunk() == PING
    client.close()
    wait_until(lambda: stream.cancelled, "the producer is told")
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")


@any_version
def test_the_last_event_of_a_stop_follows_a_ping(serve: Serve, connect: Connect) -> None:
    stream = EventStream()
    server = serve(answering(stream), sse_ping=OFTEN)
    client = connect(server)
    begin(client)
    assert client.chunk() == PING
    server.stop(grace=0)
    pieces = [piece for piece in iter(client.chunk, b"") if piece != PING]
    assert pieces == [stream.end_event("the server is stopping")]


@any_version
def test_the_last_event_comes_although_a_ping_is_due_at_the_same_time(
    serve: Serve, connect: Connect
) -> None:
    stream = EventStream()
    server = serve(answering(stream), sse_ping=LONG)
    client = connect(server)
    begin(client)
    (connection,) = server._connections.values()
    wait_until(lambda: connection.state is IDLE, "the stream is quiet")
    server._context.ending = True
    connection.deadline = 0.0
    connection.attend()
    pieces = list(iter(client.chunk, b""))
    assert pieces == [stream.end_event("the server is stopping")]


@any_version
def test_pings_count_as_sent_and_hold_no_worker(serve: Serve, connect: Connect) -> None:
    streams: list[EventStream] = []

    def answer(request: HttpRequest) -> HttpResponse:
        streams.append(EventStream())
        return HttpResponse.sse(streams[-1])

    handler = basic_handler()
    handler.get("/sse", answer)
    server = serve(handler, workers=1, sse_ping=OFTEN)
    clients = [connect(server) for _ in range(50)]
    for client in clients:
        begin(client)
    for client in clients:
        assert [client.chunk(), client.chunk()] == [PING, PING]
    assert connect(server).get("/health").status == 200
    for stream in streams:
        stream.close()
    wait_until(lambda: server.stats().responses_by_status.get(200, 0) == 51, "all have ended")
    assert server.stats().bytes_sent_total >= 100 * len(PING)


@any_version
def test_a_stream_of_a_deferred_response_is_pinged(serve: Serve, connect: Connect) -> None:
    deferred, gate = DeferredResponse(), Gate()
    handler = HttpHandler()
    handler.get("/", lambda request: deferred)
    client = connect(serve(handler, sse_ping=OFTEN))
    client.send(encode())
    gate.opened.set()
    deferred.resolve(HttpResponse.sse(EventStream()))
    client.reply_head()
    assert client.chunk() == PING


@any_version
@pytest.mark.parametrize("interval", [0.0, 0.05, 10, 86400])
def test_the_interval_may_be_any_and_0_is_off(interval: float, serve: Serve) -> None:
    assert serve(sse_ping=interval).config.sse_ping == interval


@any_version
@pytest.mark.parametrize("interval", [-1, float("nan"), "10", None])
def test_another_interval_is_refused(interval: float, serve: Serve) -> None:
    with pytest.raises(ValueError, match="sse_ping"):
        serve(sse_ping=interval)
