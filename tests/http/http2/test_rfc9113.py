"""RFC 9113 by section, on a socket; over 400 lines, since each rule is a case of its own.

What a client may send, and what ends a stream or the connection. The cases of the conformance suite
h2spec are among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cllm.http import DeferredResponse, HttpHandler, HttpRequest, HttpResponse, Server, ServerConfig
from tests.http.http2.http2_wire import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Fields,
    Http2Client,
    frame,
    request_fields,
    settings,
    uint32,
)
from tests.http.http_wire import RawClient, basic_handler

Send = Callable[[Http2Client], bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    handler = basic_handler()
    handler.post("/length", lambda request: str(len(request.body)))
    handler.get("/fields", lambda request: {"fields": list(request.headers.items())})
    handler.get("/long", lambda request: HttpResponse.bytes(b"x" * 300_000))
    handler.get("/wait", lambda request: DeferredResponse())
    handler.get("/204", lambda request: HttpResponse.empty())
    handler.get("/304", lambda request: HttpResponse(304, body=b"not sent"))
    handler.get("/hop", lambda request: HttpResponse(200, [("Keep-Alive", "x"), ("A", "b ")]))
    with Server(handler, "127.0.0.1", 0, ServerConfig(workers=2)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Http2Client]:
    with Http2Client(server.port) as client:
        yield client


def get(c: Http2Client, *fields: tuple[str, str]) -> bytes:
    """HEADERS of a GET, on the next stream."""
    return c.headers(c.take_stream(), request_fields("GET", "/", *fields))


def post(c: Http2Client, *fields: tuple[str, str]) -> bytes:
    """HEADERS of a POST whose body follows, on the next stream."""
    return c.headers(c.take_stream(), request_fields("POST", "/echo", *fields), ended=False)


def only(fields: Fields) -> Send:
    """HEADERS with exactly these fields."""
    return lambda c: c.headers(1, fields)


def wait(c: Http2Client) -> bytes:
    """HEADERS of a request whose response does not come."""
    return c.headers(c.take_stream(), request_fields("GET", "/wait"))


def data(flags: int, payload: bytes = b"x", stream: int = 1) -> bytes:
    return frame(DATA, flags, stream, payload)


def finished(c: Http2Client) -> bytes:
    """A request whose response has come."""
    c.reply(c.open())
    return b""


# What ends the connection with GOAWAY

CONNECTION_ERRORS: list[tuple[str, Send, int]] = [
    ("4.2 DATA above the largest size", lambda c: post(c) + data(0, b"x" * 16385),
     FRAME_SIZE_ERROR),
    ("4.2 HEADERS above the largest size",
     lambda c: frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0" * 16385), FRAME_SIZE_ERROR),
    ("4.3 a block that cannot be decoded",
     lambda c: frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff"),
     COMPRESSION_ERROR),
    ("4.3 a PRIORITY within a block",
     lambda c: frame(HEADERS, END_STREAM, 1, c.block(request_fields()))
     + frame(PRIORITY, 0, 1, b"\0\0\0\3\0"), PROTOCOL_ERROR),
    ("4.3 another stream's HEADERS within a block",
     lambda c: frame(HEADERS, END_STREAM, 1, c.block(request_fields()))
     + c.headers(3, request_fields()), PROTOCOL_ERROR),
    ("5.1 idle: DATA", lambda c: data(END_STREAM), PROTOCOL_ERROR),
    ("5.1 idle: RST_STREAM", lambda c: frame(RST_STREAM, 0, 1, uint32(8)), PROTOCOL_ERROR),
    ("5.1 idle: WINDOW_UPDATE", lambda c: frame(WINDOW_UPDATE, 0, 1, uint32(1)), PROTOCOL_ERROR),
    ("5.1 idle: WINDOW_UPDATE of 0", lambda c: frame(WINDOW_UPDATE, 0, 1, uint32(0)),
     PROTOCOL_ERROR),
    ("5.1 a stream of the server: WINDOW_UPDATE of 0",
     lambda c: wait(c) + wait(c) + frame(WINDOW_UPDATE, 0, 2, uint32(0)), PROTOCOL_ERROR),
    ("5.1 a stream of the server: a short PRIORITY",
     lambda c: wait(c) + wait(c) + frame(PRIORITY, 0, 2, b"\0\0\0\1"), FRAME_SIZE_ERROR),
    ("5.1 idle: CONTINUATION", lambda c: frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
    ("5.1 half-closed: CONTINUATION", lambda c: get(c) + frame(CONTINUATION, END_HEADERS, 1),
     PROTOCOL_ERROR),
    ("5.1 closed: DATA", lambda c: finished(c) + data(END_STREAM), STREAM_CLOSED),
    ("5.1 closed: HEADERS", lambda c: finished(c) + c.headers(1, request_fields()), STREAM_CLOSED),
    ("5.1 closed: CONTINUATION", lambda c: finished(c) + frame(CONTINUATION, END_HEADERS, 1),
     PROTOCOL_ERROR),
    ("5.1 closed by the client's RST_STREAM: DATA",
     lambda c: post(c) + frame(RST_STREAM, 0, 1, uint32(8)) + data(END_STREAM), STREAM_CLOSED),
    ("5.1 closed by the client's RST_STREAM: HEADERS",
     lambda c: post(c) + frame(RST_STREAM, 0, 1, uint32(8)) + c.headers(1, request_fields()),
     STREAM_CLOSED),
    ("5.1.1 an even stream", lambda c: c.headers(2, request_fields()), PROTOCOL_ERROR),
    ("5.1.1 a stream below the last",
     lambda c: c.headers(5, request_fields()) + c.headers(3, request_fields()), PROTOCOL_ERROR),
    ("5.3.1 HEADERS that depend on themselves",
     lambda c: frame(HEADERS, HAS_PRIORITY | END_HEADERS | END_STREAM, 1,
                     uint32(1) + b"\xff" + c.block(request_fields())), PROTOCOL_ERROR),
    ("5.5 an unknown frame within a block",
     lambda c: frame(HEADERS, END_STREAM, 1, c.block(request_fields())) + frame(0xFF, 0, 1),
     PROTOCOL_ERROR),
    ("6.1 DATA on stream 0", lambda c: frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    ("6.1 too much padding", lambda c: post(c) + data(PADDED, b"\6body!"), PROTOCOL_ERROR),
    ("6.2 HEADERS on stream 0", lambda c: c.headers(0, request_fields()), PROTOCOL_ERROR),
    ("6.2 too much padding",
     lambda c: frame(HEADERS, PADDED | END_HEADERS, 1, b"\xff" + c.block(request_fields())),
     PROTOCOL_ERROR),
    ("6.3 PRIORITY on stream 0", lambda c: frame(PRIORITY, 0, 0, b"\0\0\0\1\0"), PROTOCOL_ERROR),
    ("6.4 RST_STREAM on stream 0", lambda c: frame(RST_STREAM, 0, 0, uint32(8)), PROTOCOL_ERROR),
    ("6.4 a short RST_STREAM", lambda c: post(c) + frame(RST_STREAM, 0, 1, b"\0\0\0"),
     FRAME_SIZE_ERROR),
    ("6.5 SETTINGS on a stream", lambda c: frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    ("6.5 an acknowledgement with values", lambda c: frame(SETTINGS, ACK, 0, b"\0"),
     FRAME_SIZE_ERROR),
    ("6.5 SETTINGS of 3 bytes", lambda c: frame(SETTINGS, 0, 0, b"\0\3\0"), FRAME_SIZE_ERROR),
    ("6.5.2 ENABLE_PUSH is 2", lambda c: settings(s2=2), PROTOCOL_ERROR),
    ("6.5.2 INITIAL_WINDOW_SIZE is 2^31", lambda c: settings(s4=2**31), FLOW_CONTROL_ERROR),
    ("6.5.2 MAX_FRAME_SIZE is 16383", lambda c: settings(s5=16383), PROTOCOL_ERROR),
    ("6.5.2 MAX_FRAME_SIZE is 2^24", lambda c: settings(s5=2**24), PROTOCOL_ERROR),
    ("6.6 PUSH_PROMISE", lambda c: frame(PUSH_PROMISE, END_HEADERS, 1, uint32(2)), PROTOCOL_ERROR),
    ("6.7 PING on a stream", lambda c: frame(PING, 0, 1, b"12345678"), PROTOCOL_ERROR),
    ("6.7 PING of 6 bytes", lambda c: frame(PING, 0, 0, b"123456"), FRAME_SIZE_ERROR),
    ("6.8 GOAWAY on a stream", lambda c: frame(GOAWAY, 0, 1, b"\0" * 8), PROTOCOL_ERROR),
    ("6.9 WINDOW_UPDATE of 0", lambda c: frame(WINDOW_UPDATE, 0, 0, uint32(0)), PROTOCOL_ERROR),
    ("6.9 WINDOW_UPDATE of 3 bytes", lambda c: frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"),
     FRAME_SIZE_ERROR),
    ("6.9.1 the connection's window above 2^31-1",
     lambda c: 2 * frame(WINDOW_UPDATE, 0, 0, uint32(2**31 - 1)), FLOW_CONTROL_ERROR),
    ("6.9.2 a stream's window above 2^31-1 by the settings",
     lambda c: post(c) + frame(WINDOW_UPDATE, 0, 1, uint32(2**31 - 1 - 65535)) + settings(s4=65536),
     FLOW_CONTROL_ERROR),
    ("6.10 CONTINUATION after END_HEADERS",
     lambda c: post(c) + frame(CONTINUATION, END_HEADERS, 1, c.block(request_fields())),
     PROTOCOL_ERROR),
    ("6.10 CONTINUATION on stream 0",
     lambda c: frame(HEADERS, END_STREAM, 1, c.block(request_fields()))
     + frame(CONTINUATION, END_HEADERS, 0), PROTOCOL_ERROR),
    ("6.10 CONTINUATION after DATA",
     lambda c: post(c) + data(0) + frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(
    ("send", "code"), [pytest.param(send, code, id=name) for name, send, code in CONNECTION_ERRORS]
)
def test_the_connection_ends(server: Server, send: Send, code: int) -> None:
    with Http2Client(server.port) as client:
        client.settled()
        client.send(send(client))
        *_, last = client.all_frames()
    assert (last.kind, last.code) == (GOAWAY, code)


# What ends a stream with RST_STREAM

PSEUDO = request_fields()
STREAM_ERRORS: list[tuple[str, Send, int]] = [
    ("5.1 half-closed: DATA", lambda c: wait(c) + data(END_STREAM), STREAM_CLOSED),
    ("5.1 half-closed: HEADERS", lambda c: wait(c) + c.headers(1, PSEUDO), STREAM_CLOSED),
    ("6.3 a short PRIORITY", lambda c: post(c) + frame(PRIORITY, 0, 1, b"\0\0\0\1"),
     FRAME_SIZE_ERROR),
    ("6.9 WINDOW_UPDATE of 0", lambda c: post(c) + frame(WINDOW_UPDATE, 0, 1, uint32(0)),
     PROTOCOL_ERROR),
    ("6.9.1 the stream's window above 2^31-1",
     lambda c: post(c) + 2 * frame(WINDOW_UPDATE, 0, 1, uint32(2**31 - 1)), FLOW_CONTROL_ERROR),
    ("8.1 a second HEADERS without END_STREAM",
     lambda c: post(c) + c.headers(1, [("x-trailer", "a")], ended=False), PROTOCOL_ERROR),
    ("8.1 a pseudo-field in the trailers",
     lambda c: post(c) + c.headers(1, [(":method", "GET")]), PROTOCOL_ERROR),
    ("8.1.1 a body longer than its length",
     lambda c: post(c, ("content-length", "1")) + data(END_STREAM, b"test"), PROTOCOL_ERROR),
    ("8.1.1 a body shorter than its length",
     lambda c: post(c, ("content-length", "9")) + data(END_STREAM, b"test"), PROTOCOL_ERROR),
    ("8.1.1 a body in parts longer than its length",
     lambda c: post(c, ("content-length", "4")) + data(0, b"te") + data(END_STREAM, b"ste"),
     PROTOCOL_ERROR),
    ("8.1.1 a length without a body", lambda c: get(c, ("content-length", "4")), PROTOCOL_ERROR),
    ("8.1.1 trailers before the whole length",
     lambda c: post(c, ("content-length", "4")) + data(0, b"te") + c.headers(1, [("t", "a")]),
     PROTOCOL_ERROR),
    ("8.2.1 a capital in a name",
     lambda c: frame(HEADERS, END_HEADERS | END_STREAM, 1, c.block(PSEUDO) + b"\0\1X\1a"),
     PROTOCOL_ERROR),
    ("8.2.1 an empty name",
     lambda c: frame(HEADERS, END_HEADERS | END_STREAM, 1, c.block(PSEUDO) + b"\0\0\1a"),
     PROTOCOL_ERROR),
    ("8.2.1 a blank in a name", lambda c: get(c, ("a b", "c")), PROTOCOL_ERROR),
    ("8.2.1 a colon in a name", lambda c: get(c, ("a:b", "c")), PROTOCOL_ERROR),
    ("8.2.1 CR and LF in a value", lambda c: get(c, ("a", "b\r\nc: d")), PROTOCOL_ERROR),
    ("8.2.1 NUL in a value", lambda c: get(c, ("a", "b\0")), PROTOCOL_ERROR),
    ("8.2.1 a blank before a value", lambda c: get(c, ("a", " b")), PROTOCOL_ERROR),
    ("8.2.1 a tab after a value", lambda c: get(c, ("a", "b\t")), PROTOCOL_ERROR),
    ("8.2.2 Connection", lambda c: get(c, ("connection", "keep-alive")), PROTOCOL_ERROR),
    ("8.2.2 Keep-Alive", lambda c: get(c, ("keep-alive", "a")), PROTOCOL_ERROR),
    ("8.2.2 Proxy-Connection", lambda c: get(c, ("proxy-connection", "a")), PROTOCOL_ERROR),
    ("8.2.2 Transfer-Encoding", lambda c: get(c, ("transfer-encoding", "chunked")), PROTOCOL_ERROR),
    ("8.2.2 Upgrade", lambda c: get(c, ("upgrade", "websocket")), PROTOCOL_ERROR),
    ("8.2.2 TE is not trailers", lambda c: get(c, ("te", "trailers, deflate")), PROTOCOL_ERROR),
    ("8.3 an unknown pseudo-field", only([(":test", "a"), *PSEUDO]), PROTOCOL_ERROR),
    ("8.3 a pseudo-field of responses", only([*PSEUDO, (":status", "200")]), PROTOCOL_ERROR),
    ("8.3 a pseudo-field after a regular one",
     only([*PSEUDO[1:], ("a", "b"), PSEUDO[0]]), PROTOCOL_ERROR),
    ("8.3 :method twice", only([PSEUDO[0], *PSEUDO]), PROTOCOL_ERROR),
    ("8.3 :scheme twice", only([*PSEUDO, PSEUDO[1]]), PROTOCOL_ERROR),
    ("8.3 :path twice", only([*PSEUDO, PSEUDO[2]]), PROTOCOL_ERROR),
    ("8.3.1 no :method", only(PSEUDO[1:]), PROTOCOL_ERROR),
    ("8.3.1 no :scheme", only([PSEUDO[0], *PSEUDO[2:]]), PROTOCOL_ERROR),
    ("8.3.1 no :path", only([*PSEUDO[:2], PSEUDO[3]]), PROTOCOL_ERROR),
    ("8.3.1 an empty :path", only(request_fields("GET", "")), PROTOCOL_ERROR),
    ("8.3.1 a URL as :path", only(request_fields("GET", "http://test/")), PROTOCOL_ERROR),
    ("8.3.1 a :method that is no token", only(request_fields("G T")), PROTOCOL_ERROR),
    ("8.3.1 CR in :path", only(request_fields("GET", "/\r")), PROTOCOL_ERROR),
    ("8.3.1 neither :authority nor Host", only(PSEUDO[:3]), PROTOCOL_ERROR),
    ("8.3.1 an empty :authority", only([*PSEUDO[:3], (":authority", "")]), PROTOCOL_ERROR),
    ("8.3.1 an empty Host", only([*PSEUDO[:3], ("host", "")]), PROTOCOL_ERROR),
    ("8.3.1 :authority and Host differ", lambda c: get(c, ("host", "other")), PROTOCOL_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(
    ("send", "code"), [pytest.param(send, code, id=name) for name, send, code in STREAM_ERRORS]
)
def test_the_stream_ends_and_the_connection_goes_on(server: Server, send: Send, code: int) -> None:
    with Http2Client(server.port) as client:
        client.send(send(client))
        reset = client.until(RST_STREAM, 1)
        assert reset.code == code
        client.next_stream = 3
        assert client.request().body == b"root"


# What is answered, as in HTTP/1.1

ANSWERS: list[tuple[str, Send, int]] = [
    ("8.5 CONNECT", only([(":method", "CONNECT"), (":authority", "test:1")]), 501),
    ("8.3.1 OPTIONS *", only(request_fields("OPTIONS", "*")), 204),
    ("8.3.1 GET *", only(request_fields("GET", "*")), 400),
    ("8.3.1 another scheme", only([PSEUDO[0], (":scheme", "ftp"), *PSEUDO[2:]]), 400),
    ("8.3.1 dot segments", only(request_fields("GET", "/a/../b")), 400),
    ("8.3.1 an authority that is none", only([*PSEUDO[:3], (":authority", "a b")]), 400),
    ("8.3.1 Host instead of :authority", only([*PSEUDO[:3], ("host", "test")]), 200),
    ("8.3.1 Host next to :authority", only([*PSEUDO, ("host", "test")]), 200),
    ("8.2.2 TE is trailers", only([*PSEUDO, ("te", "trailers")]), 200),
    ("Content-Length twice", only([*PSEUDO, *[("content-length", "0")] * 2]), 400),
    ("an unknown expectation", only([*PSEUDO, ("expect", "x")]), 417),
    ("a path of 9 kB", only(request_fields("GET", "/" + "a" * 9000)), 414),
    ("101 fields", only([*PSEUDO, *((f"a{n}", "b") for n in range(101))]), 431),
    ("an announced body of 16 MiB + 1",
     lambda c: post(c, ("content-length", str(16 * 2**20 + 1))), 413),
    ("another content coding",
     lambda c: post(c, ("content-encoding", "br")) + data(END_STREAM), 415),
    ("no such path", only(request_fields("GET", "/nothing")), 404),
    ("no such method", only(request_fields("DELETE", "/")), 405),
    ("padding and priority",
     lambda c: frame(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS | END_STREAM, 1,
                     b"\3" + uint32(3) + b"\xff" + c.block(PSEUDO) + b"\0\0\0"), 200),
    ("a block in three frames",
     lambda c: (b := c.block(PSEUDO)) and frame(HEADERS, END_STREAM, 1, b[:2])
     + frame(CONTINUATION, 0, 1, b[2:5]) + frame(CONTINUATION, END_HEADERS, 1, b[5:]), 200),
    ("6.5.2 an unknown setting", lambda c: settings(s200=7) + get(c), 200),
    ("5.5 unknown frames", lambda c: frame(0xFF, 0xFF, 0, b"x") + get(c), 200),
    ("5.1 idle: PRIORITY", lambda c: frame(PRIORITY, 0, 5, uint32(3) + b"\0") + get(c), 200),
    ("5.1 closed: PRIORITY, WINDOW_UPDATE, RST_STREAM",
     lambda c: finished(c) + frame(PRIORITY, 0, 1, uint32(3) + b"\0")
     + frame(WINDOW_UPDATE, 0, 1, uint32(9)) + frame(RST_STREAM, 0, 1, uint32(8)) + get(c), 200),
    ("trailers", lambda c: post(c) + data(0, b"a") + c.headers(1, [("x-checksum", "b")]), 200),
    ("a large trailer section",
     lambda c: post(c) + c.headers(1, [("a", "b" * 4000)] * 9), 431),
]  # fmt: skip


@pytest.mark.parametrize(
    ("send", "status"), [pytest.param(send, status, id=name) for name, send, status in ANSWERS]
)
def test_it_is_answered(server: Server, send: Send, status: int) -> None:
    with Http2Client(server.port) as client:
        client.send(send(client))
        stream = max(client.next_stream - 2, 1)
        while stream not in client.replies or not client.replies[stream].status:
            client.frame()
        assert client.replies[stream].status == status
        client.next_stream = stream + 2
        client.send(frame(RST_STREAM, 0, stream, uint32(8)))
        assert client.request().body == b"root"


# Section 3: how it starts


def test_3_4_the_server_begins_with_settings_and_acknowledges(server: Server) -> None:
    with Http2Client(server.port) as client:
        assert client.frame().kind == SETTINGS
        assert client.until(SETTINGS, ack=True).payload == b""


def test_3_3_the_preface_may_come_byte_by_byte(server: Server) -> None:
    with Http2Client(server.port, greet=False) as client:
        for byte in PREFACE + frame(SETTINGS, 0, 0):
            client.send(bytes((byte,)))
        assert client.request().body == b"root"


def test_3_4_another_preface_is_no_http(server: Server) -> None:
    with RawClient(server.port) as client:
        client.send(PREFACE.replace(b"SM", b"XX") + frame(SETTINGS, 0, 0))
        assert client.rest().endswith(b"the connection preface is not that of HTTP/2")
    with RawClient(server.port) as client:
        client.send(PREFACE.replace(b"2.0", b"3.0"))
        assert client.reply().status in (400, 505)


def test_3_4_the_first_frame_must_be_settings(server: Server) -> None:
    with Http2Client(server.port, greet=False) as client:
        client.send(PREFACE + frame(PING, 0, 0, b"12345678"))
        assert client.until(GOAWAY).code == PROTOCOL_ERROR


def test_after_a_request_of_http_1_there_is_no_preface(server: Server) -> None:
    with RawClient(server.port) as client:
        assert client.get().status == 200
        client.send(PREFACE)
        assert client.reply().status in (400, 505)


# Section 5.1.2


def test_5_1_2_streams_past_the_limit_are_refused(server: Server) -> None:
    with Http2Client(server.port) as client:
        streams = [client.take_stream() for _ in range(102)]
        fields = request_fields("POST", "/length")
        client.send(b"".join(client.headers(each, fields, ended=False) for each in streams))
        assert client.until(RST_STREAM, streams[100]).code == REFUSED_STREAM
        assert client.until(RST_STREAM, streams[101]).code == REFUSED_STREAM
        client.send(data(END_STREAM, b"x", streams[101]) + data(END_STREAM, b"abc", streams[0]))
        assert client.reply(streams[0]).body == b"3"
        client.send(client.headers(client.take_stream(), fields, ended=False))
        client.settled()
        assert server.stats().http2_limits["streams"] == 2


# Section 6: frames that are answered


def test_6_7_a_ping_comes_back(client: Http2Client) -> None:
    client.send(frame(PING, 0, 0, b"question") + frame(PING, ACK, 0, b"answered"))
    assert client.until(PING, ack=True).payload == b"question"


def test_6_5_settings_are_acknowledged_in_order(client: Http2Client) -> None:
    client.send(settings(s4=1) + frame(PING, 0, 0, b"12345678") + settings(s4=2))
    kinds = [client.until(kind, ack=True).kind for kind in (SETTINGS, SETTINGS, PING, SETTINGS)]
    assert kinds == [SETTINGS, SETTINGS, PING, SETTINGS]


def test_6_5_2_a_client_without_a_table_gets_a_size_update(server: Server) -> None:
    with Http2Client(server.port, s1=0) as client:
        client.decoder.max_allowed_table_size = 0
        assert [client.request().status for _ in range(2)] == [200, 200]
        heads = [found.payload for found in client.seen if found.kind == HEADERS]
        assert [head[:1] == b"\x20" for head in heads] == [True, False]


# Section 8: messages


def test_8_3_1_the_handler_sees_the_authority_as_host(client: Http2Client) -> None:
    fields = client.request("GET", "/fields", None, ("x-a", "1"), ("x-a", "2")).json()["fields"]
    assert fields == [["host", "test"], ["x-a", "1"], ["x-a", "2"]]


def test_8_2_3_cookies_are_joined(client: Http2Client) -> None:
    reply = client.request("GET", "/fields", None, ("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"))
    assert ["cookie", "a=b; c=d"] in reply.json()["fields"]


def test_8_2_2_fields_of_a_connection_are_not_sent(client: Http2Client) -> None:
    headers = client.request("GET", "/hop").headers
    assert "keep-alive" not in headers
    assert headers["a"] == "b"
    assert not {"connection", "transfer-encoding"} & headers.keys()


@pytest.mark.parametrize(("path", "length"), [("/204", None), ("/304", None), ("/long", "300000")])
def test_responses_without_content_end_with_their_head(
    client: Http2Client, path: str, length: str | None
) -> None:
    method = "HEAD" if length else "GET"
    reply = client.request(method, path)
    assert reply.body == b""
    assert reply.headers.get("content-length") == length
    assert client.seen[-1].kind == HEADERS


def test_100_continue_comes_before_the_body_is_awaited(client: Http2Client) -> None:
    stream = client.open("POST", "/length")  # HEADERS with END_STREAM has no body to wait for
    assert client.reply(stream).informational == []
    stream = client.take_stream()
    fields = request_fields("POST", "/length", ("expect", "100-continue"))
    client.send(client.headers(stream, fields, ended=False))
    client.until(HEADERS, stream)
    assert client.replies[stream].informational == [100]
    client.send(data(END_STREAM, b"12345", stream))
    assert client.reply(stream).body == b"5"


def test_the_first_header_block_after_a_smaller_table_says_so(client: Http2Client) -> None:
    """RFC 7541 section 4.2; a 100 is a header block too."""
    client.send(settings(s1=0))
    client.until(SETTINGS, ack=True)
    fields = request_fields("POST", "/length", ("expect", "100-continue"))
    client.send(client.headers(client.take_stream(), fields, ended=False))
    client.until(HEADERS, 1)
    client.send(data(END_STREAM, b"12345"))
    assert client.reply(1).body == b"5"
    first, second = [found.payload for found in client.seen if found.kind == HEADERS]
    assert (first[:1], second[:1]) == (b"\x20", b"\x88")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(request_fields("HEAD", "/a/../b"), id="400"),
        pytest.param(request_fields("HEAD", "/" + "a" * 9000), id="414"),
        pytest.param(request_fields("HEAD", "/", ("expect", "x")), id="417"),
        pytest.param(request_fields("HEAD", "/", *((f"a{n}", "b") for n in range(101))), id="431"),
        pytest.param(request_fields("HEAD", "/nothing"), id="404"),
    ],
)
def test_no_response_to_head_has_a_body(client: Http2Client, fields: Fields) -> None:
    client.send(client.headers(client.take_stream(), fields))
    reply = client.reply(1)
    assert reply.status >= 400 and int(reply.headers["content-length"]) > 0
    assert reply.body == b""


def test_8_1_a_refusal_before_the_end_of_the_body_is_followed_by_a_reset(server: Server) -> None:
    with Http2Client(server.port) as client:
        client.send(post(client, ("content-length", str(17 * 2**20))))
        reply = client.reply(1)
        assert (reply.status, reply.reset) == (413, None)
        assert client.until(RST_STREAM, 1).code == NO_ERROR
        client.send(data(0, b"on its way") + data(END_STREAM))  # ignored
        assert client.request().body == b"root"


def test_a_body_above_the_limit_is_refused_without_an_announcement(
    server: Server,
) -> None:
    with Http2Client(server.port) as client:
        client.send(post(client))
        part = data(0, b"x" * 16384)
        sent = 0
        while 1 not in client.ended:
            assert sent <= 17 * 2**20
            client.send(16 * part)  # of the window, one fourth is announced early
            sent += 16 * 16384
            client.settled()
        assert client.replies[1].status == 413


def test_a_key_is_checked_before_the_body(http2: Callable[..., Http2Client]) -> None:
    from cllm.http import HttpError

    def check(request: HttpRequest) -> None:
        raise HttpError(401, "no key")

    handler = HttpHandler()
    handler.add_check(check)
    handler.post("/", lambda request: "never")
    with Server(handler, port=0, config=ServerConfig(workers=1)) as server:
        client = http2(server)
        client.send(client.headers(1, request_fields("POST"), ended=False))
        assert client.reply(1).status == 401
        assert client.until(RST_STREAM, 1).code == NO_ERROR
        client.next_stream = 3
        assert client.request("POST", "/", b"whole").status == 401
        assert client.seen[-1].kind == DATA, "no reset follows a request that is complete"


def test_heads_are_remembered_with_their_secrets_on_one_connection(server: Server) -> None:
    with Http2Client(server.port) as first, Http2Client(server.port) as second:
        secret = ("authorization", "Bearer secret")
        for _ in range(3):
            assert ["authorization", secret[1]] in (
                first.request("GET", "/fields", None, secret).json()["fields"]
            )
        blocks = [first.block(request_fields("GET", "/fields", secret)) for _ in range(2)]
        assert blocks[0] == blocks[1], "the client repeats its block"
        # The same bytes mean nothing on another connection, whose table is empty.
        second.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, blocks[0]))
        assert second.until(GOAWAY).code == COMPRESSION_ERROR


def test_a_block_that_changes_the_table_changes_it_each_time(server: Server) -> None:
    """RFC 7541 section 2.3.2: two equal blocks add two entries."""
    with Http2Client(server.port) as client:
        name = b"\x40\x03x-a\x011"  # section 6.2.1: a literal that is indexed
        pseudo = b"\x82\x86\x04\x07/fields\x01\x04test"
        for stream in (1, 3):
            client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, pseudo + name))
            assert client.reply(stream).status == 200
        # Indices 62 and 63: the two entries
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 5, pseudo + b"\xbe\xbf"))
        assert client.reply(5).json()["fields"].count(["x-a", "1"]) == 2
