"""HTTP/2 connections: several streams at once, cancellation, ends; over 400 lines, small cases."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Limits,
    Server,
)
from tests.http.http2.http2_wire import (
    CANCEL,
    DATA,
    GOAWAY,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    PING,
    REFUSED_STREAM,
    RST_STREAM,
    Http2Client,
    frame,
    request_fields,
    uint32,
)
from tests.http.http_wire import PATIENCE, Gate, RawClient, Serve, basic_handler, wait_until

Connect = Callable[..., Http2Client]


class Streams:
    """A handler whose streams the test writes: /events/{name}."""

    def __init__(self) -> None:
        self.by_name: dict[str, EventStream] = {}
        self.reasons: dict[str, str] = {}
        self.cancelled = threading.Semaphore(0)

    def __call__(self, request: HttpRequest) -> EventStream:
        name = request.path_params["name"]
        stream = self.by_name[name] = EventStream()

        def note(reason: str) -> None:
            self.reasons[name] = reason
            self.cancelled.release()

        stream.on_cancel(note)
        return stream


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def handler(streams: Streams) -> HttpHandler:
    handler = basic_handler()
    handler.get_streaming("/events/{name}", streams)
    return handler


def test_two_streams_are_sent_as_they_are_written(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    client = http2(serve(handler))
    first, second = client.open("GET", "/events/a"), client.open("GET", "/events/b")
    client.settled()
    for number in range(3):
        for name, stream in (("a", first), ("b", second)):
            streams.by_name[name].send(f"{name}{number}")
            found = client.until(DATA)
            assert (found.stream, found.payload) == (stream, f"data: {name}{number}\n\n".encode())
    streams.by_name["b"].close()
    assert client.reply(second).body.count(b"data") == 3
    assert client.request().body == b"root"
    streams.by_name["a"].close()
    assert client.reply(first).body.count(b"data") == 3


def test_a_reset_cancels_its_stream_only(
    serve: Serve,
    http2: Connect,
    handler: HttpHandler,
    streams: Streams,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cllm.access")
    server = serve(handler)
    client = http2(server)
    first, second = client.open("GET", "/events/a"), client.open("GET", "/events/b")
    client.settled()
    client.send(frame(RST_STREAM, 0, first, uint32(CANCEL)))
    assert streams.cancelled.acquire(timeout=PATIENCE)
    assert streams.reasons == {"a": "the client left"}
    streams.by_name["b"].send("on")
    streams.by_name["b"].close()
    assert client.reply(second).body == b"data: on\n\n"
    wait_until(lambda: len(caplog.records) == 2, "both are logged")
    lines = [record.getMessage() for record in caplog.records]
    assert ["status=499" in lines[0], "path=/events/a" in lines[0]] == [True, True]
    assert ["status=200" in lines[1], "bytes=10" in lines[1]] == [True, True]
    assert server.stats().clients_left_total == 1


def test_a_deferred_response_holds_no_other_stream(serve: Serve, http2: Connect) -> None:
    deferred = DeferredResponse()
    handler = basic_handler()
    handler.get("/later", lambda request: deferred)
    client = http2(serve(handler, workers=1))
    later = client.open("GET", "/later")
    assert client.request().body == b"root"
    deferred.resolve(HttpResponse.text("now"))
    assert client.reply(later).body == b"now"


def test_a_reset_cancels_a_deferred_response(serve: Serve, http2: Connect) -> None:
    deferred = DeferredResponse()
    cancelled = threading.Event()
    deferred.on_cancel(lambda reason: cancelled.set())
    handler = HttpHandler()
    handler.get("/", lambda request: deferred)
    client = http2(serve(handler))
    client.send(frame(RST_STREAM, 0, client.open(), uint32(CANCEL)))
    assert cancelled.wait(PATIENCE)


def test_a_client_that_leaves_cancels_all_its_streams(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    server = serve(handler)
    client = http2(server)
    for name in "abc":
        client.open("GET", f"/events/{name}")
    client.settled()
    client.close()
    for _ in range(3):
        assert streams.cancelled.acquire(timeout=PATIENCE)
    wait_until(lambda: server.stats().connections_open == 0, "the connection is closed")


def test_a_stream_that_fails_is_reset(serve: Serve, http2: Connect) -> None:
    def broken(request: HttpRequest) -> HttpResponse:
        def pieces() -> Iterator[bytes]:
            yield b"begin"
            raise RuntimeError("planted")

        from cllm.http import IterableStream

        return HttpResponse.stream(IterableStream(pieces()))

    handler = basic_handler()
    handler.get("/broken", broken)
    client = http2(serve(handler))
    reply = client.request("GET", "/broken")
    assert (reply.status, reply.body, reply.reset) == (200, b"begin", INTERNAL_ERROR)
    assert client.request().body == b"root"


def test_a_body_stream_that_fails_costs_its_own_stream_only(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    class Failing(BodyStream):
        def take(self, most: int = 0) -> list[bytes]:
            raise SystemExit("planted")

    failing = Failing()
    handler.get("/failing", lambda request: HttpResponse.stream(failing))
    client = http2(serve(handler))
    other = client.open("GET", "/events/a")
    client.settled()
    assert client.request("GET", "/failing").reset == INTERNAL_ERROR
    assert failing.cancelled
    streams.by_name["a"].send("on")
    streams.by_name["a"].close()
    assert client.reply(other).body == b"data: on\n\n"


def test_a_response_that_cannot_be_sent_is_a_500(serve: Serve, http2: Connect) -> None:
    handler = HttpHandler()
    handler.get("/field", lambda request: HttpResponse(200, [("A", "b\nc")]))
    handler.get("/status", lambda request: HttpResponse(100))
    handler.get("/body", lambda request: HttpResponse(200, body="text"))  # type: ignore[arg-type]
    handler.get("/error", lambda request: 1 / 0)
    client = http2(serve(handler))
    for path in ("/field", "/status", "/body", "/error"):
        assert client.request("GET", path).status == 500


def test_a_body_in_gzip_is_decoded(serve: Serve, http2: Connect) -> None:
    client = http2(serve())
    coded = gzip.compress(b"text" * 1000)
    reply = client.request("POST", "/echo", coded, ("content-encoding", "gzip"))
    assert reply.body == b"text" * 1000
    reply = client.request("POST", "/echo", coded[:-5], ("content-encoding", "gzip"))
    assert reply.status == 400


def test_a_quiet_stream_sends_pings(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    client = http2(serve(handler, sse_ping=0.1))
    asked = [client.open("GET", f"/events/{name}") for name in "ab"]
    for stream in asked:
        assert client.first_data(stream) == b": \n\n"
    streams.by_name["a"].send("1")
    for _ in range(1000):  # the pings of b end no wait
        if client.until(DATA, asked[0]).payload == b"data: 1\n\n":
            break
    assert client.until(DATA, asked[0]).payload == b": \n\n"


def test_requests_in_one_read_are_all_answered(serve: Serve, http2: Connect) -> None:
    """More than one turn takes."""
    client = http2(serve(workers=2))
    for _ in range(5):
        asked = [client.take_stream() for _ in range(100)]
        client.send(b"".join(client.headers(each, request_fields()) for each in asked))
        assert all(client.reply(each).body == b"root" for each in asked)


def test_a_refusal_of_a_request_that_waits_has_an_id(serve: Serve, http2: Connect) -> None:
    handler = basic_handler()
    handler.get("/long", lambda request: b"x" * 3_000_000)
    server = serve(handler, body_memory=100_000, limits=Limits(body=100_000))
    client = http2(server)
    client.updates = False
    client.open("GET", "/long")
    client.settled()
    client.open("POST", "/echo", b"y" * 60_000)
    refused = client.open("POST", "/echo", b"y" * 60_000)
    client.until(HEADERS, refused)
    reply = client.replies[refused]
    assert reply.status == 503 and reply.headers["x-request-id"]


def test_a_handler_that_blocks_holds_its_connection_and_no_other(
    serve: Serve, http2: Connect
) -> None:
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler, workers=2)
    client, other = http2(server), http2(server)
    held = client.open("GET", "/gate")
    gate.wait_entered()
    behind = client.open()
    assert other.request().body == b"root"
    gate.opened.set()
    assert client.reply(held).body == b"through"
    assert client.reply(behind).body == b"root"


def test_a_response_that_has_left_counts_although_a_bad_frame_follows_its_request(
    serve: Serve, http2: Connect
) -> None:
    server = serve()
    client = http2(server)
    client.settled()
    request = client.headers(client.take_stream(), request_fields())
    client.send(request + frame(DATA, 0, 0, b"on no stream"))
    client.all_frames()
    assert client.replies[1].body == b"root"
    wait_until(lambda: server.stats().connections_open == 0, "it is closed")
    assert server.stats().responses_by_status == {200: 1}
    assert server.stats().clients_left_total == 0


# How it ends


def goaways(client: Http2Client) -> list[tuple[int, int]]:
    return [(f.last_stream, f.code) for f in client.seen if f.kind == GOAWAY]


def stop(server: Server, grace: float) -> threading.Thread:
    thread = threading.Thread(target=server.stop, args=(grace,))
    thread.start()
    return thread


def test_a_stop_lets_the_streams_end(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    server = serve(handler)
    client = http2(server)
    asked = client.open("GET", "/events/a")
    client.settled()
    stopping = stop(server, PATIENCE)
    assert client.until(GOAWAY).last_stream == 2**31 - 1
    late = client.open()  # on its way when the server said so
    ping = client.until(PING, ack=False)
    client.send(frame(PING, 1, 0, ping.payload))
    assert client.reply(late).body == b"root"
    assert client.until(GOAWAY).last_stream == late
    refused = client.open()
    streams.by_name["a"].send("still")
    streams.by_name["a"].close()
    assert client.reply(asked).body == b"data: still\n\n"
    client.all_frames()
    assert goaways(client) == [(2**31 - 1, NO_ERROR), (late, NO_ERROR)]
    assert refused not in client.replies
    stopping.join(PATIENCE)


def test_the_end_of_the_grace_period_ends_the_streams(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    handler.get("/later", lambda request: DeferredResponse())
    server = serve(handler)
    client = http2(server)
    events, later = client.open("GET", "/events/a"), client.open("GET", "/later")
    body = client.take_stream()
    client.send(client.headers(body, request_fields("POST", "/echo"), ended=False))
    client.settled()
    stopping = stop(server, 0)
    client.all_frames()
    assert b"stopping" in client.replies[events].body
    assert client.replies[later].status == 503
    assert client.replies[body].reset == REFUSED_STREAM
    assert {events, later, body} <= client.ended
    stopping.join(PATIENCE)


def test_an_idle_connection_ends_with_goaway(serve: Serve, http2: Connect) -> None:
    client = http2(serve(keep_alive_timeout=0.2))
    assert client.request().body == b"root"
    client.all_frames()
    assert goaways(client) == [(1, NO_ERROR)]


def test_a_connection_that_never_asks_has_the_time_of_a_head(serve: Serve, http2: Connect) -> None:
    client = http2(serve(head_timeout=0.2))
    client.all_frames()
    assert goaways(client) == [(0, NO_ERROR)]


def test_each_request_begins_the_idle_time_anew(serve: Serve, http2: Connect) -> None:
    """Also one that begins and ends while the server reads once."""
    server = serve(keep_alive_timeout=3600.0)
    client = http2(server)
    assert client.request().body == b"root"
    client.settled()
    (connection,) = server._connections.values()
    begun = [0.0]

    def waits_anew() -> bool:
        since = connection.idle_since
        return since is not None and since > begun[-1]

    for _ in range(5):
        wait_until(waits_anew, "it waits for a request again")
        begun.append(connection.idle_since or 0.0)
        assert client.request().body == b"root"
    wait_until(waits_anew, "it waits for a request again")


def test_pings_do_not_keep_an_idle_connection(serve: Serve, http2: Connect) -> None:
    client = http2(serve(keep_alive_timeout=0.3))
    client.request()
    try:
        for _ in range(100):
            client.send(frame(PING, 0, 0, b"12345678"))
            client.until(PING, ack=True)
            threading.Event().wait(0.02)
    except (EOFError, OSError):
        pass
    assert goaways(client) == [(1, NO_ERROR)]


def test_an_idle_connection_makes_room_for_a_new_one(serve: Serve, http2: Connect) -> None:
    server = serve(max_connections=1)
    client = http2(server)
    assert client.request().body == b"root"
    with RawClient(server.port) as other:
        assert other.get().body == b"root"
    client.all_frames()
    assert goaways(client) == [(1, NO_ERROR)]
    assert server.stats().reclaimed_total == 1


def test_a_busy_connection_does_not_make_room(
    serve: Serve, http2: Connect, handler: HttpHandler, streams: Streams
) -> None:
    server = serve(handler, max_connections=1)
    client = http2(server)
    asked = client.open("GET", "/events/a")
    client.settled()
    with RawClient(server.port) as other:
        other.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        streams.by_name["a"].send("here")
        assert client.first_data(asked) == b"data: here\n\n"
        client.close()
        assert other.reply().body == b"root"
