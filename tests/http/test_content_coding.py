"""Bodies in gzip arrive decoded; invalid, too large and other codings are refused."""

from __future__ import annotations

import gzip
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.http import HttpError, HttpHandler, HttpRequest, Limits
from cllm.http.content_coding import MAX_MEMBERS, gunzip
from cllm.http.incoming import SMALL, BodyMemory
from tests.http.http_wire import HTTP_1, Connect, Reply, Serve, any_version, encode, wait_until

PROTOCOLS = HTTP_1

MIB = 1 << 20
TEXT = b'{"prompt": "Hello"}' * 100


def showing_handler() -> HttpHandler:
    """Tells what an endpoint sees."""

    def show(request: HttpRequest) -> dict[str, Any]:
        return {
            "crc": zlib.crc32(request.body),
            "size": len(request.body),
            "fields": sorted(request.headers),
            "length": request.headers.get("content-length"),
        }

    handler = HttpHandler()
    handler.post("/", show)
    return handler


def post(client: Any, body: bytes, coding: str = "gzip", **headers: str) -> Reply:
    reply: Reply = client.request("POST", "/", body, {"Content-Encoding": coding, **headers})
    return reply


@any_version
@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZip", "identity, gzip", "gzip ,"])
def test_a_handler_sees_the_decoded_body_and_fields_that_fit_it(
    serve: Serve, connect: Connect, coding: str
) -> None:
    seen = post(connect(serve(showing_handler())), gzip.compress(TEXT), coding).json()
    assert (seen["size"], seen["crc"]) == (len(TEXT), zlib.crc32(TEXT))
    assert seen["fields"] == ["content-length", "host"]
    assert seen["length"] == str(len(TEXT))


@any_version
def test_identity_is_no_coding(serve: Serve, connect: Connect) -> None:
    seen = post(connect(serve(showing_handler())), b"plain", "identity").json()
    assert (seen["size"], seen["length"]) == (5, "5")
    assert "content-encoding" not in seen["fields"]


def test_a_chunked_body_may_be_gzip(serve: Serve, connect: Connect) -> None:
    data = gzip.compress(random.Random(1).randbytes(300_000))
    client = connect(serve(showing_handler()))
    client.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for start in range(0, len(data), 50_000):
        part = data[start : start + 50_000]
        client.send(b"%x\r\n" % len(part) + part + b"\r\n")
    client.send(b"0\r\nTrailer: x\r\n\r\n")
    assert client.reply().json()["size"] == 300_000


@any_version
def test_an_empty_body_has_nothing_to_decode(serve: Serve, connect: Connect) -> None:
    client = connect(serve(showing_handler()))
    assert client.request("POST", "/", b"", {"Content-Encoding": "zstd"}).json()["size"] == 0


@any_version
@pytest.mark.parametrize(
    "coding", ["zstd", "br", "deflate", "gzip, gzip", "gzip, br", "x", "gzip;q=1"]
)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "head-only"])
def test_another_coding_is_415_that_says_what_is_taken(
    serve: Serve, connect: Connect, protocol: str, coding: str, whole: bool
) -> None:
    """RFC 9110 section 15.5.16, 12.5.3."""
    client = connect(serve(showing_handler()))
    data = encode("POST", "/", b"something", {"Content-Encoding": coding})
    client.send(data if whole else data[:-9])
    reply = client.reply()
    assert reply.status == 415
    assert reply.headers["accept-encoding"] == "gzip"
    if protocol in HTTP_1:
        assert reply.headers["connection"] == ("keep-alive" if whole else "close")
    elif whole:
        assert client.request("POST", "/", b"x").status == 200, "the connection goes on"


GZIPPED = gzip.compress(TEXT)


@pytest.mark.parametrize(
    "body",
    [
        TEXT,
        GZIPPED[:-1],
        GZIPPED[:10],
        GZIPPED[:5],
        GZIPPED + b"garbage",
        GZIPPED + b"\0" * 8,
        GZIPPED + GZIPPED[:-3],
        GZIPPED[:-8] + bytes(8),
        zlib.compress(TEXT),
        b"\x1f\x8b" + bytes(30),
    ],
    ids=["plain", "cut", "no-data", "cut-head", "garbage", "zeros", "second-cut", "crc", "zlib",
         "method"],
)  # fmt: skip
@any_version
def test_what_is_not_gzip_from_end_to_end_is_400(
    serve: Serve, connect: Connect, body: bytes
) -> None:
    server = serve(showing_handler())
    client = connect(server)
    reply = post(client, body)
    assert reply.status == 400
    assert "gzip" in reply.json()["error"]
    assert server.stats().body_bytes == 0
    assert post(client, GZIPPED).status == 200, "the connection goes on"


@any_version
def test_members_follow_each_other(serve: Serve, connect: Connect) -> None:
    parts = [random.Random(n).randbytes(n * 1000) for n in range(100)]
    seen = post(connect(serve(showing_handler())), b"".join(map(gzip.compress, parts))).json()
    assert seen["crc"] == zlib.crc32(b"".join(parts))


def test_members_without_end_are_refused() -> None:
    empty = gzip.compress(b"")
    memory = BodyMemory(MIB)
    assert gunzip(empty * MAX_MEMBERS, MIB, memory) == b""
    with pytest.raises(HttpError, match="members") as caught:
        gunzip(empty * (MAX_MEMBERS + 1), MIB, memory)
    assert caught.value.status == 400


def test_full_memory_keeps_no_small_body_out() -> None:
    memory = BodyMemory(MIB)
    memory.take(MIB)
    assert gunzip(gzip.compress(bytes(SMALL)), MIB, memory) == bytes(SMALL)
    with pytest.raises(HttpError) as caught:
        gunzip(gzip.compress(bytes(SMALL + 1)), MIB, memory)
    assert caught.value.status == 503
    assert memory.used == MIB


@any_version
def test_a_bomb_is_413_and_is_not_decoded_past_the_limit(serve: Serve, connect: Connect) -> None:
    limits = Limits(body=2 * MIB)
    server = serve(showing_handler(), limits=limits, body_memory=3 * MIB)
    client = connect(server)
    assert post(client, gzip.compress(bytes(2 * MIB))).json()["size"] == 2 * MIB
    assert post(client, gzip.compress(bytes(2 * MIB + 1))).status == 413
    many = gzip.compress(bytes(MIB)) * 3
    assert post(client, many).status == 413
    assert post(client, gzip.compress(bytes(50 * MIB))).status == 413
    assert server.stats().body_bytes == 0


@any_version
def test_what_is_decoded_counts_as_body_memory(serve: Serve, connect: Connect) -> None:
    server = serve(showing_handler(), limits=Limits(body=2 * MIB), body_memory=2 * MIB)
    holding = connect(server)
    holding.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1999999\r\n\r\n" + bytes(MIB))
    wait_until(lambda: server.stats().body_bytes == MIB, "half of it is taken")
    client = connect(server)
    assert post(client, gzip.compress(bytes(MIB // 2))).status == 200
    reply = post(client, gzip.compress(bytes(3 * MIB // 2)))
    assert reply.status == 503
    assert "retry-after" in reply.headers
    assert server.stats().body_bytes == MIB


@any_version
def test_those_who_may_not_ask_have_nothing_decoded(serve: Serve, connect: Connect) -> None:
    def check(request: HttpRequest) -> None:
        raise HttpError(401, "no key")

    handler = showing_handler()
    handler.add_check(check)
    client = connect(serve(handler, cors_origins=("*",)))
    reply = post(client, b"not gzip at all", Origin="https://a.example")
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == "*"


@any_version
def test_a_page_may_read_why(serve: Serve, connect: Connect) -> None:
    client = connect(serve(showing_handler(), cors_origins=("*",)))
    reply = post(client, b"not gzip", Origin="https://a.example")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (400, "*")


@given(st.lists(st.binary(max_size=70_000), max_size=5), st.integers(0, 9), st.integers(-2, 2))
def test_decoding_is_the_inverse_and_the_limit_is_exact(
    parts: list[bytes], level: int, slack: int
) -> None:
    plain = b"".join(parts)
    data = b"".join(gzip.compress(part, level) for part in parts)
    limit = max(len(plain) + slack, 0)
    memory = BodyMemory(MIB)
    if limit >= len(plain):
        assert gunzip(data, limit, memory) == plain
    else:
        with pytest.raises(HttpError) as caught:
            gunzip(data, limit, memory)
        assert caught.value.status == 413
    assert memory.used == 0
