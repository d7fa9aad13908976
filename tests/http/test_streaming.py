"""Streams on the wire: framing, order, back-pressure, ends, and who is told about them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cllm.http import (
    BodyStream,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    IterableStream,
    Server,
    StreamClosed,
)
from tests.http.http_wire import PATIENCE, Connect, Gate, Serve, basic_handler, encode, wait_until


def streaming(stream: BodyStream) -> HttpHandler:
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    return handler


def test_events_of_a_generator(serve: Serve, connect: Connect) -> None:
    handler = basic_handler()
    items = [{"token": "é"}, "text", b"data: raw\n\n"]
    handler.get_streaming("/events", lambda request: iter(items))
    client = connect(serve(handler))
    reply = client.get("/events")
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in reply.headers
    assert reply.chunks == [
        'data: {"token":"é"}\n\n'.encode(), b"data: text\n\n", b"data: raw\n\n",
    ]  # fmt: skip
    assert client.get("/health").status == 200, "the connection goes on"


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


def test_pieces_that_waited_leave_as_one_chunk(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    for number in range(3000):  # more than one sendmsg takes
        stream.write(b"%d," % number)
    stream.close()
    reply = connect(serve(streaming(stream))).get("/stream")
    assert reply.chunks == [b"".join(b"%d," % number for number in range(3000))]


def test_an_empty_stream_is_an_empty_body(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    stream.close()
    client = connect(serve(streaming(stream)))
    assert client.get("/stream").chunks == []
    assert client.get("/health").status == 200


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


def test_head_of_a_stream_has_no_body_and_ends_the_stream(serve: Serve, connect: Connect) -> None:
    stream = BodyStream()
    client = connect(serve(streaming(stream)))
    assert client.request("HEAD", "/stream").status == 200
    assert client.get("/health").status == 200
    assert stream.cancelled


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


def test_a_reader_too_slow_loses_its_stream_at_the_high_water_mark(
    serve: Serve, connect: Connect
) -> None:
    stream = BodyStream()
    server = serve(streaming(stream), high_water=100_000)
    client = connect(server, receive_buffer=4096)
    client.send(encode(path="/stream"))
    client.reply_head()
    with pytest.raises(StreamClosed, match="too slow"):
        for _ in range(10_000):
            stream.write(bytes(10_000))
    wait_until(lambda: server.stats().connections_open == 0, "its connection is closed")
    with pytest.raises((EOFError, ConnectionResetError)):
        while client.chunk():
            pass


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


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_generator_that_fails_after_the_head(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    def failing() -> Iterator[bytes]:
        yield b"good"
        raise KeyError("a secret")

    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.stream(IterableStream(failing())))
    client = connect(serve(handler))
    client.send(encode(version=version))
    client.reply_head()
    with pytest.raises((EOFError, ConnectionResetError)):
        client.exactly(1 << 20)
    assert "a secret" in caplog.text


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, GeneratorExit])
def test_a_stream_whose_take_fails_costs_its_own_connection_only(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    class Broken(BodyStream):
        def take(self) -> list[bytes]:
            raise error

    stream = Broken()
    server = serve(streaming(stream), workers=1)
    client = connect(server)
    client.send(encode(path="/stream"))
    assert client.ended()
    assert stream.cancelled
    assert error.__name__ in caplog.text
    assert connect(server).get("/health").status == 200


def test_a_pull_source_is_asked_once_for_each_wake_up(serve: Serve, connect: Connect) -> None:
    """The seam that the API frames engine deltas through: `take` runs on the worker."""

    class Pull(EventStream):
        def __init__(self) -> None:
            super().__init__()
            self.left = 3
            self.threads: set[str] = set()

        def take(self) -> list[bytes]:
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
