"""A live server's answers to requests on both sides of each rule; sections as in docs/http.md.

A second request follows each one. It must be answered after an accepted request, and never after a
refused one: otherwise two programs could see different requests in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cllm.http import HttpHandler, HttpRequest, HttpResponse, Server, ServerConfig
from tests.http.http_wire import Connect

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"


def handler() -> HttpHandler:
    def echo(request: HttpRequest) -> HttpResponse:
        return HttpResponse.bytes(request.body)

    handler = HttpHandler()
    for register in (handler.get, handler.post, handler.put, handler.delete):
        register("/", echo)
        register("/a/{name}", echo)
    handler.get("/next", lambda request: "next")
    return handler


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(handler(), port=0, config=ServerConfig(workers=2, access_log=False)) as server:
        yield server


def line(*lines: str) -> list[bytes]:
    """Requests with these request lines."""
    return [f"{each}\r\nHost: h\r\n\r\n".encode("latin-1") for each in lines]


def version(*versions: str) -> list[bytes]:
    return line(*(f"GET / {each}" for each in versions))


def target(*targets: str) -> list[bytes]:
    return line(*(f"GET {each} HTTP/1.1" for each in targets))


def host(*hosts: str) -> list[bytes]:
    return [f"GET / HTTP/1.1\r\nHost: {each}\r\n\r\n".encode("latin-1") for each in hosts]


def field(*fields: str) -> list[bytes]:
    return [f"GET / HTTP/1.1\r\nHost: h\r\n{f}\r\n\r\n".encode("latin-1") for f in fields]


def posted(body: bytes, *fields: str) -> list[bytes]:
    start = "POST / HTTP/1.1\r\nHost: h\r\n"
    return [f"{start}{each}\r\n\r\n".encode("latin-1") + body for each in fields]


def coding(*codings: str) -> list[bytes]:
    return posted(b"1\r\na\r\n0\r\n\r\n", *(f"Transfer-Encoding: {each}" for each in codings))


def chunks(*bodies: str) -> list[bytes]:
    (head,) = posted(b"", "Transfer-Encoding: chunked")
    return [head + body.encode("latin-1") for body in bodies]


def size(*sizes: str) -> list[bytes]:
    return chunks(*(f"{each}\r\nabc\r\n0\r\n\r\n" for each in sizes))


def last(*lasts: str) -> list[bytes]:
    return chunks(*(f"1\r\na\r\n{each}" for each in lasts))


VECTORS = {
    ("9112 2.2", 200): [b"\r\n" + NEXT, b"\r\n\r\n" + NEXT],
    ("9112 2.2", 400): [
        b"\r\n\r\n\r\n" + NEXT, b"\n" + NEXT, b" " + NEXT, b"\t" + NEXT, b"\0" + NEXT,
        b"GET / HTTP/1.1\nHost: h\n\n", b"GET / HTTP/1.1\r\nHost: h\n\r\n",
        b"GET / HTTP/1.1\rHost: h\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n\n",
    ],
    ("9112 3", 400): [*line(
        "GET /", "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET / HTTP/1.1 ", "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1\t", "GET /\tHTTP/1.1", "GET\x0b/ HTTP/1.1", "GET /\xa0HTTP/1.1",
        "GET HTTP/1.1",
        "/ HTTP/1.1", "GET / a HTTP/1.1", "G(T / HTTP/1.1", "GET: / HTTP/1.1", "G\xc9T / HTTP/1.1",
        '"GET" / HTTP/1.1', "GET", "", "G@T / HTTP/1.1", "GET / / HTTP/1.1", "GET,POST / HTTP/1.1",
    )],
    ("9110 9.1", 405): line("get / HTTP/1.1", "PATCH / HTTP/1.1", "TRACE / HTTP/1.1",
    "X!#$ / HTTP/1.1"),
    ("9110 9.3.6", 501): line("CONNECT h:80 HTTP/1.1", "CONNECT / HTTP/1.1", "CONNECT h HTTP/1.0"),
    ("9112 2.3", 400): version(
        "HTTP/1", "HTTP/2", "HTTP/3", "HTTP/01.1", "HTTP/1.01", "HTTP/1.10", "HTTP/10.1",
        "http/1.1",
        "Http/1.1", "hTTP/1.1", "HTTP/1.1.1", "HTTP/1,1", "HTTP/-1.1", "HTTP/1.x", "HTTP/.1",
        "HTTP/1.",
        "HTTP/ 1.1", "HTTP /1.1", "HTTP\\1.1", "HTTPS/1.1", "HTTP/1.1;a", "HTTP/0x1.1", "XTTP/1.1",
        "HTTP/\xb2.0", "HTP/1.1", "HTTP", "HTTP/", "1.1",
    ),
    ("9110 2.5", 200): version("HTTP/1.2", "HTTP/1.5", "HTTP/1.9"),
    ("9110 15.6.6", 505): version(
        "HTTP/0.9", "HTTP/0.0", "HTTP/2.0", "HTTP/2.1", "HTTP/3.0", "HTTP/9.9"
    ),
    ("9112 3.2.1", 200): target("/", "/?", "/?a=b", "/?%zz", "/a/%41", "/a/x:y", "/a/;p", "/??",
    "/a/@"),
    ("9112 3.2.1", 400): target(
        "a", "?a", "#", "/#f", "/?a#f", "/\xe4", "/?\xe4", "h", "h:80", "/%", "/%4", "/%gg", "/%00",
        "/%0d%0a", "/%ff", "/%7f", "/../", "/.", "/a/..", "/%2e%2e/", "/a/./b", "\\", "//h/../",
    ),
    ("9110 15.5.5", 404): target("//", "/nothing", "/a/", "/a/b/c", "/a", "//h/"),
    ("9112 3.2.2", 200): target(
        "http://h/", "HTTP://h/", "https://h/", "http://other:80/", "http://h?a", "http://h",
        "http://[::1]/", "http://h:/", "http://%41/",
    ),
    ("9112 3.2.2", 400): target(
        "http://", "http:///", "http://:80/", "http://u@h/", "http://u:p@h/", "ftp://h/",
        "http:/h/",
        "http:h", "://h/", "http://h:x/", "http://h:65536/", "http://[::1/", "http://[1]/",
        "http://h#f",
        "http://h/#f", "http://a b/", "http://\xe4/", "http://h\\/", "http://h/../", "file:///",
        "http://[::g]/", "http://h:1:2/", "ws://h/", "http://[v1]/",
    ),
    ("9112 3.2.4", 204): line("OPTIONS * HTTP/1.1", "OPTIONS http://h HTTP/1.1",
    "OPTIONS / HTTP/1.1"),
    ("9112 3.2.4", 400): line("GET * HTTP/1.1", "POST * HTTP/1.1", "OPTIONS ** HTTP/1.1"),
    ("9112 3.2", 200): [
        *host("h:80", "h:", "[::1]", "[::1]:80", "1.2.3.4", "H.Example.", "a_b", "%41", "", " "),
        b"GET / HTTP/1.1\r\nhOsT: h\r\n\r\n", b"GET / HTTP/1.1\r\nHost:h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \t h \t\r\n\r\n",
    ],
    ("9112 3.2", 400): [
        *host(
            "a b", "h/", "h?", "h#", "u@h", "h:x", "h:-1", "h:99999", "h:80:80", ":80", ":", "[::1",
            "::1", "[]", "[1.2.3.4]", "[:::]", "[::1]x", "http://h", "h\\", "\xe4", '"h"', "a\tb",
            "h,/",
            "%", "%4", "[fe80::1%25eth0]", "<h>",
        ),
        *field("Host: h", "Host: other", "host:"),
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n", b"GET http://h/ HTTP/1.1\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost:\r\n\r\n", b"GET http://h/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET http://h/ HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", b"GET / HTTP/1.2\r\n\r\n",
    ],
    ("9112 5", 200): field("A:", "A: ", "A:b", "A:\tb\t", "A: b:c", "!#$%&'*+-.^_`|~09: x",
    "A: \xe4", ":".join("AB")),
    ("9112 5", 400): field(
        "A", "A b: c", "A : b", "A\t: b", ": b", " A: b", "\tA: b", "A: b\r\n c", "A: b\r\n\tc",
        "\xe4: b",
        "A(: b", "A[: b", '"A": b', "A/: b", "A@: b", "A\xa0: b", "A: \0", "A: \x01", "A: \x7f",
        "A: \x0b",
        "A: b\rc", "A: b\nc", "A\0: b", "A,B: c", "A;: b", "A=: b", "{A}: b", "\x7f: b",
    ),
    ("9110 8.6", 200): posted(
        b"abc", "Content-Length: 3", "content-length:3", "Content-Length: 003",
        "Content-Length:\t3\t"
    ),
    ("9110 8.6", 400): posted(
        b"abc", "Content-Length: +3", "Content-Length: -3", "Content-Length: 3,3",
        "Content-Length: 3, 3",
        "Content-Length: 0x3", "Content-Length: 3a", "Content-Length: 3 3", "Content-Length:",
        "Content-Length: \xb3", "Content-Length: 3.0", "Content-Length: 3e0", "Content-Length: 3;a",
        "Content-Length: 3\r\nContent-Length: 3", "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3,", "Content-Length: ,3", 'Content-Length: "3"', "Content-Length: 1_0",
        "Content-Length : 3", "Content-Length: \xd9\xa3",
    ),
    ("9110 15.5.14", 413): posted(
        b"", "Content-Length: 16777217", "Content-Length: 99999999999999999999999",
        f"Content-Length: {'9' * 200}"
    ),
    ("9112 6.1", 200): coding("chunked", "Chunked", "CHUNKED", "\tchunked\t"),
    ("9112 6.3", 400): [
        *coding(
            "gzip", "identity", "chunked, gzip", "chunked, identity", "xchunked", "chunkedx",
            "chunked-",
            "deflate", "gzip, deflate", "chunked, chunked", "chunked, gzip, chunked",
            "chunked;a=b", "",
            ",", ",chunked", "chunked,", "chunked,,chunked", "chunked chunked", '"chunked"',
            "'chunked'",
            "chunked\xa0", "\xa0chunked", "chunk\xe9d", "chunked;", "gzip chunked", "(chunked)",
            "chunked=",
        ),
        *posted(
            b"1\r\na\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding:",
            "Transfer-Encoding: chunked\r\nContent-Length: 11",
            "Content-Length: 11\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 0", "Transfer-Encoding : chunked",
            "Transfer-Encoding: gzip\r\nContent-Length: 11", "Transfer-Encoding:\r\n chunked",
            "Transfer-Encoding: \x0bchunked", "Content-Length: x\r\nTransfer-Encoding: chunked",
        ),
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ("9112 6.1", 501): [
        *coding("gzip, chunked", "GZIP,CHUNKED", "x;a=b, chunked", "identity, chunked",
        "a, b, chunked"),
        *posted(b"0\r\n\r\n", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
    ],
    ("9112 7.1", 200): [
        *size("3", "03", "0000000000000003"), *chunks("0\r\n\r\n",
        "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"),
        *last("000\r\n\r\n", "0\r\nA: b\r\n\r\n", "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nHost: x\r\nHost: y\r\n\r\n"),
    ],
    ("9112 7.1.1", 200): [
        *size("3;a", "3;a=b", '3;a="b"', "3;a;b=c", "3 ;a", "3; a", "3\t;\ta\t=\tb", '3;a=";"',
        '3;a="\\""', '3;a=""'),
        *last("0;a\r\n\r\n", "0;a=b\r\n\r\n"),
    ],
    ("9112 7.1.1", 400): [
        *size(
            "3;", "3; ", "3;;", "3;;a", "3;a;", "3;=", "3;=b", "3;a=", "3;a==b", "3;a=b=c",
            "3;a b", "3; a b=c",
            '3;a="', '3;a="b', '3;a=b"', '3;a="b"c', '3;"a"', "3;a,b", "3;(a)", "3;\xe4",
            "3;a=\xe4", "3 a", "3,",
            '3;a="\0"', "3;a ", "3;a=b ", "3;a\rb", "3;a\nb", "3\n;a", "3=a", "3;/",
        ),
        *last("0;\r\n\r\n", "0;;\r\n\r\n", "0 \r\n\r\n"),
    ],
    ("9112 7.1", 400): [
        *size(
            "", "+3", "-3", "0x3", "x3", "3x", "3h", " 3", "\t3", "3 ", "3\t", "3_0", "\xb3",
            "00000000000000003",
            "3.0", "3\r", "g", '"3"', "3\0",
        ),
        *chunks(
            "3\r\nab\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n", "3\r\nabc\r\n\r\n0\r\n\r\n", "\r\n3\r\nabc\r\n0\r\n\r\n",
            "3\r\nabc\r0\r\n\r\n",
        ),
        *last("0\n\r\n", "0\r\n\n", "-0\r\n\r\n", "0x0\r\n\r\n"),
    ],
    ("9110 6.5.1", 400): last(
        "0\r\nA\r\n\r\n", "0\r\nA b: c\r\n\r\n", "0\r\n A: b\r\n\r\n", "0\r\nA : b\r\n\r\n",
        "0\r\nA: b\r\n c\r\n\r\n",
        "0\r\nA: \0\r\n\r\n", "0\r\nA: b\n\r\n", "0\r\nA: b\r\r\n\r\n",
    ),
    ("9110 15.5.14 chunked", 413): chunks("1000001\r\n", "ffffffff\r\n", "FFFFFFFFFFFFFFFF\r\n"),
    ("9110 10.1.1", 200): [*field("Expect: 100-continue", "Expect:"), *posted(b"a",
    "Expect: 100-Continue\r\nContent-Length: 1")],
    ("9110 10.1.1", 417): field("Expect: x", "Expect: 100-continue, x", "Expect: 100-continue=y",
    "Expect: 200-ok"),
    ("9112 9.6 ignored", 200): field(
        "Connection: keep-alive", "Connection: x", "Upgrade: h2c",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
        "TE: trailers", "Range: bytes=0-1", "If-None-Match: *", "Proxy-Connection: close",
        "Keep-Alive: timeout=5",
    ),
}  # fmt: skip

CASES = [
    pytest.param(status, sent, id=f"{section}-{status}-{number}")
    for (section, status), requests in VECTORS.items()
    for number, sent in enumerate(requests)
]


def test_the_table_is_long_and_says_nothing_twice() -> None:
    requests = [sent for each in VECTORS.values() for sent in each]
    assert len(requests) >= 400
    assert sorted({sent for sent in requests if requests.count(sent) > 1}) == []


@pytest.mark.parametrize(("status", "sent"), CASES)
def test_a_request_is_answered_as_its_section_says(
    server: Server, connect: Connect, status: int, sent: bytes
) -> None:
    client = connect(server)
    client.send(sent + NEXT)
    reply = client.reply()
    if reply.status == 100:
        reply = client.reply()
    assert reply.status == status
    refused = status not in (200, 204, 404, 405)
    if refused:
        assert reply.headers["connection"] == "close"
        assert client.ended(), "what stands behind it is not read as a request"
    else:
        follower = client.reply()
        assert (follower.status, follower.body) == (200, b"next")


@pytest.mark.parametrize(
    "fields",
    [
        "Connection: close",
        "connection: CLOSE",
        "Connection: x, close",
        "Connection: x\r\nConnection: close",
    ],
)
def test_rfc9112_9_6_what_stands_behind_a_close_is_not_answered(
    server: Server, connect: Connect, fields: str
) -> None:
    client = connect(server)
    client.send(field(fields)[0] + NEXT)
    assert client.reply().headers["connection"] == "close"
    assert client.ended()


@pytest.mark.parametrize(
    "start", ["GET / HTTP/1.0", "GET / HTTP/1.0\r\nHost:", "GET http://h/ HTTP/1.0"]
)
def test_rfc9112_9_3_http_1_0_closes_unless_asked_not_to(
    server: Server, connect: Connect, start: str
) -> None:
    client = connect(server)
    client.send(
        start.encode() + b"\r\nConnection: Keep-Alive\r\n\r\n" + start.encode() + b"\r\n\r\n"
    )
    assert client.reply().headers["connection"] == "keep-alive"
    assert client.reply().headers["connection"] == "close"
    assert client.ended()
