"""Streams on the wire: over 400 lines of framing, order, back-pressure, ends, callbacks."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from asyncio import CancelledError
from collections.abc import Iterator

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    IterableStream,
    Server,
    StreamClosed,
)
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


def streaming(stream: BodyStream) -> HttpHandler:
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    return handler


@any_version
def test_events_of_a_generator(serve: Serve, connect: Connect, protocol: str) -> None:
    handler = basic_handler()
    items = [{"token": "é"}, "text", b"data: raw\n\n"]
    handler.get_streaming("/events", lambda request: iter(items))
    client = connect(serve(handler))
    reply = client.get("/events")
    assert reply.headers["content-type"] == "text/event-stream"
    if protocol in HTTP_1:
        assert reply.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in reply.headers
    assert reply.chunks == [
        'data: {"token":"é"}\n\n'.encode(), b"data: text\n\n", b"data: raw\n\n",
    ]  # fmt: skip
    assert client.get("/health").status == 200, "the connection goes on"


@any_version
def test_each_piece_arrives_when_it_is_written(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    client = connect(serve(streaming(stream)))
    client.send(encode(path="/stream"))
    assert client.reply_head().status == 200, "the head does not wait for the first piece"
    for number in range(100):
        stream.write(b"%d" % number)
        assert client.chunk() == b"%d" % number
    stream.close()
    assert client.chunk() == b""


@any_version
def test_what_another_thread_writes_arrives_whole_and_in_order(
    serve: Serve, connect: Connect
) -> None:
    streams: list[BodyStream] = []
    ready = threading.Semaphore(0)

    def begin(request: HttpRequest) -> HttpResponse:
        streams.append(BodyStream())
        ready.release()
        return HttpResponse.stream(streams[-1])

    handler = HttpHandler()
    handler.get("/", begin)
    server = serve(handler)
    clients = [connect(server) for _ in range(20)]
    for client in clients:
        client.send(encode())
        assert ready.acquire(timeout=PATIENCE)

    def produce() -> None:
        for number in range(300):
            for stream in streams:
                stream.write(b"%d," % number)
        for stream in streams:
            stream.close()

    producer = threading.Thread(target=produce)
    producer.start()
    whole = b"".join(b"%d," % number for number in range(300))
    assert [client.reply().body for client in clients] == [whole] * 20
    producer.join(PATIENCE)


@any_version
def test_pieces_that_waited_leave_as_one_chunk(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    for number in range(3000):  # more than one sendmsg takes
        stream.write(b"%d," % number)
    stream.close()
    reply = connect(serve(streaming(stream))).get("/stream")
    assert reply.chunks == [b"".join(b"%d," % number for number in range(3000))]


@any_version
def test_an_empty_stream_is_an_empty_body(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    stream.close()
    client = connect(serve(streaming(stream)))
    assert client.get("/stream").chunks == []
    assert client.get("/health").status == 200


@any_version
def test_an_empty_piece_does_not_end_the_body(serve: Serve, connect: Connect) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(IterableStream([b"a", b"", b"b"])))
    assert connect(serve(handler)).get().body == b"ab"


def test_in_http_1_0_the_close_ends_the_body(serve: Serve, connect: Connect) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(IterableStream([b"a", b"b"])))
    client = connect(serve(handler))
    reply = client.request("GET", "/", headers={"Connection": "keep-alive"}, version="HTTP/1.0")
    assert "transfer-encoding" not in reply.headers
    assert reply.headers["connection"] == "close"
    assert reply.body == b"ab"


@any_version
def test_head_of_a_stream_has_no_body_and_ends_the_stream(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    client = connect(serve(streaming(stream)))
    assert client.request("HEAD", "/stream").status == 200
    assert client.get("/health").status == 200
    assert stream.cancelled


@any_version
def test_streams_hold_no_worker(serve: Serve, connect: Connect) -> None:
    streams: list[BodyStream] = []

    def begin(request: HttpRequest) -> HttpResponse:
        streams.append(BodyStream())
        return HttpResponse.stream(streams[-1])

    handler = basic_handler()
    handler.get("/stream", begin)
    server = serve(handler, workers=2)
    clients = [connect(server) for _ in range(50)]
    for client in clients:
        client.send(encode(path="/stream"))
        client.reply_head()
    assert connect(server).get("/health").status == 200
    for stream in streams:
        stream.write(b"x")
        stream.close()
    assert [client.chunk() for client in clients] == [b"x"] * 50


# Readers that are slow or leave


@any_version
def test_a_reader_too_slow_loses_its_stream_at_the_high_water_mark(
    serve: Serve, connect: Connect, protocol: str
) -> None:
    stream = BodyStream()
    server = serve(streaming(stream), high_water=100_000)
    client = connect(server, receive_buffer=4096)
    client.send(encode(path="/stream"))
    client.reply_head()
    with pytest.raises(StreamClosed, match="too slow"):
        for _ in range(10_000):
            stream.write(bytes(10_000))
    if protocol in HTTP_1:
        wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    with pytest.raises((EOFError, ConnectionResetError)):
        while client.chunk():
            pass


@any_version
def test_an_iterator_waits_for_a_slow_reader(serve: Serve, connect: Connect) -> None:
    pulled = [0]

    def pieces() -> Iterator[bytes]:
        for _ in range(300):
            pulled[0] += 1
            yield bytes(50_000)

    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(IterableStream(pieces())))
    server = serve(handler, workers=1)
    client = connect(server, receive_buffer=4096)
    client.send(encode(path="/stream"))
    client.reply_head()
    client.chunk()
    wait_until(lambda: server.stats().parked == 1, "the connection waits for its client")
    assert connect(server).get("/health").status == 200
    assert pulled[0] < 200, "what the socket buffers hold, and not all 15 MB"
    reader = threading.Thread(target=lambda: [None for _ in iter(client.chunk, b"")])
    reader.start()
    reader.join(3 * PATIENCE)
    assert pulled[0] == 300


@any_version
def test_a_generator_is_closed_when_its_client_leaves(serve: Serve, connect: Connect) -> None:
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.set()

    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(IterableStream(endless())))
    server: Server = serve(handler)
    client = connect(server)
    client.send(encode())
    client.reply_head()
    client.close()
    assert closed.wait(PATIENCE)
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")


@any_version
def test_a_client_that_leaves_while_its_generator_blocks(serve: Serve, connect: Connect) -> None:
    gate, closed = Gate(), threading.Event()

    def blocking(request: HttpRequest) -> Iterator[bytes]:
        try:
            yield b"first"
            gate(request)
            yield b"second"
            yield b"third"
        finally:
            closed.set()

    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(IterableStream(blocking(request))))
    client = connect(serve(handler))
    client.send(encode())
    assert client.reply_head().status == 200
    gate.wait_entered()
    client.reset()
    gate.opened.set()
    assert closed.wait(PATIENCE)


# Bad ends


@any_version
def test_a_body_that_is_broken_off_does_not_look_complete(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    client = connect(serve(streaming(stream)))
    client.send(encode(path="/stream"))
    client.reply_head()
    stream.write(b"half")
    assert client.chunk() == b"half"
    stream.cancel("the producer gave up")
    with pytest.raises((EOFError, ConnectionResetError)):
        client.chunk()


def failing_handler() -> HttpHandler:
    def failing() -> Iterator[bytes]:
        yield b"good"
        raise KeyError("a secret")

    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(IterableStream(failing())))
    return handler


@any_version
def test_a_generator_that_fails_after_the_head(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(serve(failing_handler()))
    client.send(encode())
    client.reply_head()
    with pytest.raises((EOFError, ConnectionResetError)):
        client.exactly(1 << 20)
    assert "a secret" in caplog.text


def test_a_generator_that_fails_in_http_1_0(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(serve(failing_handler()))
    client.send(encode(version="HTTP/1.0"))
    client.reply_head()
    with pytest.raises((EOFError, ConnectionResetError)):
        client.exactly(1 << 20)
    assert "a secret" in caplog.text


@any_version
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, GeneratorExit])
def test_a_stream_whose_take_fails_costs_its_own_connection_only(
    serve: Serve,
    connect: Connect,
    protocol: str,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
) -> None:
    class Broken(BodyStream):
        def take(self, most: int = 0) -> list[bytes]:
            raise error

    stream = Broken()
    server = serve(streaming(stream), workers=1)
    client = connect(server)
    client.send(encode(path="/stream"))
    if protocol in HTTP_1:
        assert client.ended()
    else:
        with pytest.raises(ConnectionResetError):
            client.reply()
        assert client.get("/health").status == 200, "it costs its stream only"
    assert stream.cancelled
    assert error.__name__ in caplog.text
    assert connect(server).get("/health").status == 200


@any_version
def test_a_pull_source_is_asked_once_for_each_wake_up(serve: Serve, connect: Connect) -> None:
    """The seam that the API frames engine deltas through: `take` runs on the worker."""

    class Pull(EventStream):
        def __init__(self) -> None:
            super().__init__()
            self.left = 3
            self.threads: set[str] = set()

        def take(self, most: int = 0) -> list[bytes]:
            self.threads.add(threading.current_thread().name)
            super().take()
            self.left -= 1
            return [b"data: %d\n\n" % self.left]

        @property
        def finished(self) -> bool:
            return self.left == 0

    stream = Pull()
    handler = HttpHandler()
    handler.get_streaming("/", lambda request: stream)
    client = connect(serve(handler))
    client.send(encode())
    client.reply_head()
    assert client.chunk() == b"data: 2\n\n"
    for left in (1, 0):
        stream.write(b"news")
        assert client.chunk() == b"data: %d\n\n" % left
    assert client.chunk() == b""
    assert all(name.startswith("cllm-worker-") for name in stream.threads)


# Who is told


@any_version
def test_a_stream_in_a_deferred_response_that_nobody_took_is_cancelled(
    serve: Serve, connect: Connect
) -> None:
    deferred, stream, gate = DeferredResponse(), BodyStream(), Gate()
    reasons: list[str] = []
    told = threading.Event()
    stream.on_cancel(reasons.append)
    stream.on_cancel(lambda reason: told.set())
    handler = basic_handler()
    handler.get("/deferred", lambda request: deferred)
    handler.get("/gate", gate)
    server = serve(handler, workers=1)
    client, other = connect(server), connect(server)
    client.send(encode(path="/deferred"))
    wait_until(lambda: server.stats().requests_total == 1, "it is asked")
    other.send(encode(path="/gate"))
    gate.wait_entered()  # the only worker is held: the response and the end are seen together
    client.reset()
    assert deferred.resolve(HttpResponse.stream(stream))
    gate.opened.set()
    assert told.wait(PATIENCE)
    assert reasons == ["the client left"]
    with pytest.raises(StreamClosed):
        stream.write(b"x")


@any_version
@pytest.mark.parametrize("streaming", [False, True])
def test_a_generator_is_closed_at_once_when_an_item_cannot_be_framed(
    serve: Serve, connect: Connect, streaming: bool
) -> None:
    closed = threading.Event()

    def items(request: HttpRequest) -> Iterator[object]:
        try:
            yield "one"
            yield object()
        finally:
            closed.set()

    handler = HttpHandler()
    if streaming:
        handler.get_streaming("/", items)
    else:
        handler.get("/", lambda request: HttpResponse.stream(IterableStream(items(request))))
    server = serve(handler)
    gc.disable()  # it must not be the collector's work
    try:
        client = connect(server)
        client.send(encode())
        assert client.reply_head().status == 200
        assert closed.wait(PATIENCE)
    finally:
        gc.enable()


@any_version
def test_a_generator_whose_first_item_cannot_be_framed_is_closed(
    serve: Serve, connect: Connect
) -> None:
    closed = threading.Event()

    def items(request: HttpRequest) -> Iterator[object]:
        try:
            yield object()
        finally:
            closed.set()

    handler = HttpHandler()
    handler.get_streaming("/", items)
    gc.disable()
    try:
        assert connect(serve(handler)).get().status == 500
        assert closed.wait(PATIENCE)
    finally:
        gc.enable()


@any_version
@pytest.mark.parametrize("end", ["read", "left"])
def test_a_stream_that_has_ended_waits_for_no_collector(
    serve: Serve, connect: Connect, end: str
) -> None:
    streams: list[weakref.ref[IterableStream]] = []

    def begin(request: HttpRequest) -> HttpResponse:
        pieces: Iterator[bytes] = itertools.repeat(b"x") if end == "left" else iter([b"a", b"b"])
        stream = IterableStream(pieces)
        streams.append(weakref.ref(stream))
        return HttpResponse.stream(stream)

    handler = HttpHandler()
    handler.get("/", begin)
    client = connect(serve(handler))
    gc.collect()
    gc.disable()
    try:
        client.send(encode())
        client.reply_head()
        if end == "left":
            client.reset()
        else:
            assert list(iter(client.chunk, b"")) == [b"a", b"b"]
        wait_until(lambda: streams[0]() is None, "nobody holds the stream")
    finally:
        gc.enable()


def test_a_cancelled_stream_frees_a_connection_whose_client_does_not_read(
    serve: Serve, connect: Connect
) -> None:
    stream = BodyStream()
    server = serve(streaming(stream), write_timeout=3600.0, high_water=1 << 30)
    client = connect(server, receive_buffer=4096)
    client.send(encode(path="/stream"))
    client.reply_head()
    stream.write(bytes(16 << 20))
    wait_until(lambda: stream._pending == 0, "the first piece is being sent")
    stream.write(b"behind it")  # a wake-up is pending from now on
    wait_until(lambda: server.stats().parked == 1, "the connection waits for its client")
    stream.cancel("not wanted any more")
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")


@any_version
def test_what_is_no_bytes_is_refused_where_it_is_written(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    client = connect(serve(streaming(stream)))
    client.send(encode(path="/stream"))
    client.reply_head()
    for wrong in ("text", "", 5, None, ["a"]):
        with pytest.raises(TypeError, match="bytes"):
            stream.write(wrong)  # type: ignore[arg-type]
    stream.write(b"good")
    assert client.chunk() == b"good"


@any_version
def test_a_buffer_may_be_used_again_once_it_is_written(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    buffer = bytearray(b"AAAA")
    stream.write(buffer)
    stream.write(memoryview(buffer))
    buffer[:] = b"BBBB"
    stream.close()
    assert connect(serve(streaming(stream))).get("/stream").body == b"AAAAAAAA"


@any_version
@pytest.mark.parametrize("error", [SystemExit, CancelledError, KeyboardInterrupt])
def test_a_generator_that_ends_with_any_exception_ends_its_stream(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def items(request: HttpRequest) -> Iterator[str]:
        yield "one"
        raise error

    handler = basic_handler()
    handler.get_streaming("/events", items)
    client = connect(serve(handler, workers=1))
    assert b"internal error" in client.get("/events").body
    assert error.__name__ in caplog.text
    assert client.get("/health").status == 200


@pytest.mark.parametrize("why", ["failed", "left"])
def test_rfc9112_8_a_body_that_the_close_would_end_is_reset(
    serve: Serve, connect: Connect, why: str
) -> None:
    class Failing(BodyStream):
        def take(self, most: int = 0) -> list[bytes]:
            pieces = super().take()
            if pieces == [b"fail"]:
                raise ZeroDivisionError
            return pieces

    stream = Failing()
    client = connect(serve(streaming(stream)))
    client.send(encode(path="/stream", version="HTTP/1.0"))
    client.reply_head()
    stream.write(b"half")
    assert client.exactly(4) == b"half"
    if why == "failed":
        stream.write(b"fail")
    else:
        client.half_close()  # it counts as gone
    with pytest.raises(ConnectionResetError):
        client.rest()


@any_version
def test_streams_ask_proxies_not_to_collect_their_pieces(serve: Serve, connect: Connect) -> None:
    handler = HttpHandler()
    lines = [{"a": 1}, {"a": 2}]
    handler.get(
        "/", lambda request: HttpResponse.stream(IterableStream(lines), "application/x-ndjson")
    )
    reply = connect(serve(handler)).get()
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.chunks == [b'{"a":1}\n', b'{"a":2}\n']
