"""Request bodies; over 400 lines, since the cases share one budget to fill.

They are checked by their head, bounded in memory together and in time.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import random
import threading
from time import monotonic
from typing import Any

import pytest

from cllm.http import (
    HttpError,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Limits,
    Server,
    ServerConfig,
)
from cllm.http.connection import AGAIN, Connection, Context
from cllm.http.http1 import Http1
from cllm.http.incoming import BodyMemory
from cllm.http.intake import Intake
from cllm.http.poller import new_poller
from cllm.http.workspace import Workspace
from tests.http.http_wire import (
    HTTP_1,
    PATIENCE,
    Connect,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    wait_until,
)

PROTOCOLS = HTTP_1

SHORT = 0.1  # s
KIB = 1024
PAGE = "https://page.example"

LENGTH = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"


def locked_handler(seen: list[HttpRequest] | None = None) -> HttpHandler:
    """Requests need the field `X-Key: right`."""

    def check(request: HttpRequest) -> None:
        if seen is not None:
            seen.append(request)
        if request.headers.get("x-key") != "right":
            raise HttpError(401, "no key", [("WWW-Authenticate", "Bearer")])

    handler = basic_handler()
    handler.add_check(check)
    return handler


def held(server: Server) -> int:
    return server.stats().body_bytes


# Checks of the head


@any_version
def test_a_check_refuses_before_100_continue(serve: Serve, connect: Connect, protocol: str) -> None:
    client = connect(serve(locked_handler()))
    client.send(LENGTH % 5 + b"Expect: 100-continue\r\n\r\n")
    reply = client.reply()
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "x-request-id" in reply.headers
    if protocol in HTTP_1:
        assert reply.headers["connection"] == "close"
        assert client.ended()


@any_version
def test_what_passes_is_invited_and_served(serve: Serve, connect: Connect) -> None:
    client = connect(serve(locked_handler()))
    client.send(LENGTH % 5 + b"X-Key: right\r\nExpect: 100-continue\r\n\r\n")
    assert client.reply_head().status == 100
    client.send(b"hello")
    assert client.reply().body == b"hello"


@any_version
@pytest.mark.parametrize("head", [LENGTH % (1 << 20), CHUNKED], ids=["length", "chunked"])
def test_a_check_refuses_while_the_body_is_still_to_come(
    serve: Serve, connect: Connect, head: bytes
) -> None:
    seen: list[HttpRequest] = []
    server = serve(locked_handler(seen))
    client = connect(server)
    client.send(head + b"\r\n")
    assert client.reply().status == 401
    assert [request.body for request in seen] == [b""]
    assert held(server) == 0
    client.send(b"x" * 1000)  # it is read and dropped, so that the answer is not reset away
    client.half_close()
    assert client.ended()


@any_version
def test_a_refused_body_that_is_there_keeps_the_connection(serve: Serve, connect: Connect) -> None:
    client = connect(serve(locked_handler()))
    client.send(encode("POST", "/echo", b"small") + encode(headers={"X-Key": "right"}))
    assert client.reply().status == 401
    assert client.reply().status == 200


@any_version
def test_nothing_behind_a_body_that_was_refused_is_answered(serve: Serve, connect: Connect) -> None:
    """What follows is the body's rest, whatever it looks like."""
    served: list[str] = []
    handler = locked_handler()
    handler.get("/inside", lambda request: served.append(request.path))
    client = connect(serve(handler))
    inner = encode(path="/inside", headers={"X-Key": "right"})
    client.send(LENGTH % (1 << 20) + b"\r\n" + inner)
    assert client.reply().status == 401
    client.send(inner)
    client.half_close()
    assert client.ended()
    assert served == []


def test_a_refusal_of_http_1_0_and_of_head_have_their_forms(serve: Serve, connect: Connect) -> None:
    server = serve(locked_handler())
    old = connect(server)
    old.send(b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 9\r\n\r\n")
    assert old.reply().headers["connection"] == "close"
    assert old.ended()
    head = connect(server)
    head.send(b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    reply = head.reply("HEAD")
    assert reply.status == 401
    assert int(reply.headers["content-length"]) > 0
    assert head.ended(), "and no body"


@any_version
def test_a_page_may_read_the_refusal_and_its_preflight_passes(
    serve: Serve, connect: Connect
) -> None:
    server = serve(locked_handler(), cors_origins=(PAGE,))
    client = connect(server)
    client.send(LENGTH % 9 + b"Origin: " + PAGE.encode() + b"\r\n\r\n")
    reply = client.reply()
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == PAGE
    preflight = connect(server)
    preflight.send(
        b"OPTIONS /echo HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Method: POST\r\n"
        b"Content-Length: 9\r\nOrigin: " + PAGE.encode() + b"\r\n\r\n"
    )
    assert preflight.reply().status == 200


@any_version
def test_a_check_that_fails_is_answered_with_500(serve: Serve, connect: Connect) -> None:
    def check(request: HttpRequest) -> None:
        raise ZeroDivisionError

    handler = basic_handler()
    handler.add_check(check)
    client = connect(serve(handler))
    client.send(LENGTH % 9 + b"\r\n")
    assert client.reply().status == 500


@any_version
def test_a_refusal_is_in_the_access_log_and_counted(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(locked_handler())
    with caplog.at_level(logging.INFO, "cllm.access"):
        client = connect(server)
        client.send(LENGTH % 9 + b"X-Request-Id: mine\r\n\r\n")
        assert client.reply().headers["x-request-id"] == "mine"
        wait_until(lambda: "id=mine" in caplog.text, "it is logged")
    assert "method=POST path=/echo status=401" in caplog.text
    assert server.stats().requests_total == 1
    assert server.stats().responses_by_status == {401: 1}


# Memory


def fill(client: RawClient, length: int, size: int, coding: str = "length") -> None:
    """Announce a body and send `size` bytes of it."""
    if coding == "length":
        client.send(LENGTH % length + b"\r\n" + b"x" * size)
    else:
        client.send(CHUNKED + b"\r\n%x\r\n" % length + b"x" * size)


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_past_the_memory_a_newcomer_is_answered_with_503(
    serve: Serve, connect: Connect, coding: str
) -> None:
    server = serve(limits=Limits(body=300 * KIB), body_memory=500 * KIB)
    first, second = connect(server), connect(server)
    fill(first, 300 * KIB, 250 * KIB, coding)
    fill(second, 240 * KIB, 200 * KIB, coding)
    wait_until(lambda: held(server) == 450 * KIB, "both are there")
    third = connect(server)
    fill(third, 100 * KIB, 90 * KIB, coding)
    reply = third.reply()
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) > 0
    assert "request bodies" in reply.json()["error"]
    assert held(server) == 450 * KIB, "the newcomer holds nothing"
    assert connect(server).request("POST", "/echo", b"small").body == b"small"
    first.send(b"x" * 50 * KIB + (b"\r\n0\r\n\r\n" if coding == "chunked" else b""))
    assert len(first.reply().body) == 300 * KIB
    assert held(server) == 200 * KIB
    again = connect(server)
    assert len(again.request("POST", "/echo", b"x" * 300 * KIB).body) == 300 * KIB


@any_version
def test_a_body_that_cannot_fit_is_refused_before_it_is_sent(
    serve: Serve, connect: Connect
) -> None:
    server = serve(limits=Limits(body=300 * KIB), body_memory=300 * KIB)
    fill(connect(server), 300 * KIB, 100 * KIB)
    wait_until(lambda: held(server) == 100 * KIB, "it is there")
    client = connect(server)
    client.send(LENGTH % (250 * KIB) + b"Expect: 100-continue\r\n\r\n")
    assert client.reply().status == 503


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_full_memory_keeps_no_small_body_out(serve: Serve, connect: Connect, coding: str) -> None:
    server = serve(limits=Limits(body=300 * KIB), body_memory=300 * KIB)
    fill(connect(server), 300 * KIB, 290 * KIB)
    fill(connect(server), 12 * KIB, 10 * KIB)
    wait_until(lambda: held(server) == 300 * KIB, "it is full")
    client = connect(server)
    fill(client, 16 * KIB, 8 * KIB, coding)
    wait_until(lambda: held(server) == 308 * KIB, "it is taken in")
    client.send(b"x" * 8 * KIB + (b"\r\n0\r\n\r\n" if coding == "chunked" else b""))
    assert client.reply().body == b"x" * 16 * KIB
    assert held(server) == 300 * KIB


def test_a_body_that_always_has_more_to_read_has_its_own_deadline() -> None:
    class Fast:
        """A transport of which every read fills the buffer."""

        def read(self, buffer: memoryview) -> int:
            buffer[:] = (b"" if self.begun else LENGTH % 2**40 + b"\r\n").ljust(len(buffer), b"x")
            self.begun = True
            return len(buffer)

        begun = False
        fileno = int

    config = ServerConfig(limits=Limits(body=2**40), body_memory=2**40, body_timeout=1000.0)
    poller = new_poller()
    context = Context(
        Intake(basic_handler(), config),
        config,
        poller,
        {},
        lambda _: None,
        lambda _: None,
        lambda _: None,
    )
    protocol = Http1(context)
    client = ("127.0.0.1", 1)
    connection = Connection(context, Fast(), protocol, client, 0, monotonic())  # type: ignore[arg-type]
    try:
        assert protocol.advance(connection, Workspace(())) == AGAIN
        assert connection.deadline > monotonic() + 900
    finally:
        poller.close()


@any_version
def test_who_only_announces_keeps_nobody_out(serve: Serve, connect: Connect) -> None:
    server = serve(limits=Limits(body=300 * KIB), body_memory=300 * KIB)
    announcing = [connect(server) for _ in range(20)]
    for client in announcing:
        client.send(LENGTH % (300 * KIB) + b"\r\n")
    wait_until(lambda: server.stats().connections_open == 20, "all are there")
    body = b"x" * 300 * KIB
    assert connect(server).request("POST", "/echo", body).body == body


@any_version
def test_a_503_has_the_cors_fields(serve: Serve, connect: Connect) -> None:
    server = serve(limits=Limits(body=90 * KIB), body_memory=90 * KIB, cors_origins=("*",))
    fill(connect(server), 90 * KIB, 80 * KIB)
    wait_until(lambda: held(server) == 80 * KIB, "it is there")
    client = connect(server)
    client.send(LENGTH % (20 * KIB) + b"Origin: https://a.example\r\n\r\n")
    assert client.reply().headers["access-control-allow-origin"] == "*"


def complete(client: RawClient, server: Server) -> None:
    client.send(b"x" * 56)
    assert client.reply().status == 200


def too_slow(client: RawClient, server: Server) -> None:
    assert client.reply().status == 408


def too_large(client: RawClient, server: Server) -> None:
    assert client.reply().status == 413


def malformed(client: RawClient, server: Server) -> None:
    client.send(b"no chunk size\r\n")
    assert client.reply().status == 400


def stop(client: RawClient, server: Server) -> None:
    server.stop(grace=0)
    assert client.ended()


@pytest.mark.parametrize(
    ("end", "sent", "config"),
    [
        (complete, LENGTH % 100 + b"\r\n" + b"x" * 44, {}),
        (too_slow, LENGTH % 100 + b"\r\n" + b"x" * 44, {"body_timeout": SHORT}),
        (too_large, CHUNKED + b"\r\n2c\r\n" + b"x" * 44 + b"\r\nffff\r\n", {}),
        (malformed, CHUNKED + b"\r\n2c\r\n" + b"x" * 44 + b"\r\n", {}),
        (lambda client, server: client.close(), LENGTH % 100 + b"\r\n" + b"x" * 44, {}),
        (lambda client, server: client.reset(), LENGTH % 100 + b"\r\n" + b"x" * 44, {}),
        (lambda client, server: client.half_close(), LENGTH % 100 + b"\r\n" + b"x" * 44, {}),
        (stop, LENGTH % 100 + b"\r\n" + b"x" * 44, {}),
    ],
    ids=["complete", "408", "413", "400", "close", "reset", "half-close", "stop"],
)
def test_every_end_gives_the_memory_back(
    serve: Serve, connect: Connect, end: Any, sent: bytes, config: dict[str, Any]
) -> None:
    server = serve(limits=Limits(body=1000), body_memory=2000, **config)
    memory = server._context.intake.memory
    client = connect(server)
    client.send(sent)
    if end not in (too_slow, too_large):
        wait_until(lambda: memory.used >= 44, "it is counted")
    end(client, server)
    wait_until(lambda: memory.used == 0, "it is given back")


def test_counts_stay_exact_under_many_threads() -> None:
    memory = BodyMemory(1000)

    def use() -> None:
        for _ in range(2000):
            try:
                memory.take(300)
            except HttpError:
                continue
            memory.take(-300)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert memory.used == 0


# Time


@pytest.mark.parametrize("head", [LENGTH % 1000, CHUNKED], ids=["length", "chunked"])
def test_a_byte_now_and_then_does_not_hold_a_body(
    serve: Serve, connect: Connect, head: bytes
) -> None:
    client = connect(serve(body_timeout=3 * SHORT, min_rate=1000))
    client.send(head + b"\r\n")
    client.socket.settimeout(SHORT / 2)
    for _ in range(200):
        try:
            assert client.reply().status == 408
        except TimeoutError:
            client.send(b"x" if head is not CHUNKED else b"1\r\nx\r\n")
            continue
        break
    else:
        pytest.fail("bytes that trickle in keep a body alive")


@any_version
def test_what_came_fast_buys_no_more_than_the_timeout(serve: Serve, connect: Connect) -> None:
    """Else the first 15 of 16 MiB would buy nine hours at 500 bytes a second."""
    client = connect(serve(body_timeout=3 * SHORT, min_rate=1000))
    client.send(LENGTH % (1 << 20) + b"\r\n" + b"x" * 1_000_000)
    assert client.reply().status == 408


@any_version
def test_without_a_rate_any_byte_is_progress(serve: Serve, connect: Connect) -> None:
    client = connect(serve(body_timeout=5 * SHORT, min_rate=0))
    client.send(LENGTH % 20 + b"\r\n")
    pause = threading.Event()
    for _ in range(20):
        pause.wait(SHORT / 2)
        client.send(b"x")
    assert client.reply().status == 200


@any_version
def test_a_408_for_a_body_is_the_requests_own(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    handler = basic_handler()
    handler.error_body = lambda status, message, request: (
        (request.path if request else "-").encode(),
        "text/plain",
    )
    with caplog.at_level(logging.INFO, "cllm.access"):
        client = connect(serve(handler, body_timeout=SHORT))
        client.send(LENGTH % 9 + b"\r\n")
        assert client.reply().body == b"/echo"
        wait_until(lambda: "path=/echo status=408" in caplog.text, "it is logged")


def test_before_body_without_checks_lets_everything_pass() -> None:
    assert basic_handler().before_body(HttpRequest.build("POST", "/echo")) is None


def test_a_handlers_own_empty_response_is_no_pass() -> None:
    handler = basic_handler()
    handler.add_check(lambda request: None)
    handler.get("/empty", lambda request: HttpResponse.empty())
    assert handler.before_body(HttpRequest.build("GET", "/empty")) is None
    answer = handler.handle_request(HttpRequest.build("GET", "/empty"))
    assert isinstance(answer, HttpResponse) and answer.status == 204


# Everything at once


def random_request(rng: random.Random) -> bytes:
    """With or without a key, a body, a coding, an expectation; sometimes wrong."""
    body = rng.choice([b"", b"x", rng.randbytes(rng.randint(1, 5000)), bytes(300_000)])
    fields = ["Host: a"]
    if rng.random() < 0.6:
        fields.append("X-Key: right")
    if rng.random() < 0.4:
        fields.append("Content-Encoding: " + rng.choice(["gzip", "gzip", "br", "identity"]))
        if rng.random() < 0.8:
            body = gzip.compress(body, 1)[: rng.choice([None, None, -1])]
    if rng.random() < 0.2:
        fields.append("Expect: 100-continue")
    if rng.random() < 0.2:
        fields.append("Connection: close")
    version = "1.0" if rng.random() < 0.15 else "1.1"
    if version == "1.1" and rng.random() < 0.4:
        fields.append("Transfer-Encoding: chunked")
        size = rng.randint(1, 9000)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        body = b"".join(b"%x\r\n" % len(part) + part + b"\r\n" for part in parts)
        body += rng.choice([b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"0\r\nbad trailer\r\n\r\n"])
    else:
        fields.append(f"Content-Length: {len(body) + rng.choice([0, 0, 0, 9])}")
    head = f"{rng.choice(['POST', 'POST', 'HEAD'])} /echo HTTP/{version}\r\n"
    return (head + "\r\n".join(fields) + "\r\n\r\n").encode() + body


@any_version
@pytest.mark.parametrize("seed", range(4))
def test_whatever_clients_do_nothing_is_left_of_it(serve: Serve, seed: int) -> None:
    rng = random.Random(seed)
    server = serve(
        locked_handler(),
        tls=None,
        limits=Limits(body=400_000),
        body_memory=500_000,
        max_connections=12,
        max_connections_per_client=11,
        head_timeout=2 * SHORT,
        body_timeout=2 * SHORT,
        keep_alive_timeout=2 * SHORT,
        write_timeout=2 * SHORT,
        linger_timeout=SHORT,
    )
    before = len(os.listdir("/dev/fd"))
    open_ones: list[RawClient] = []

    def end(client: RawClient) -> None:
        way = rng.random()
        if way < 0.3:
            client.reset()
        elif way < 0.6:
            with contextlib.suppress(OSError):
                client.half_close()
                client.socket.settimeout(SHORT)
                client.rest()
        client.close()

    for _ in range(120):
        client = RawClient(server.port)
        client.socket.settimeout(SHORT / 2)
        open_ones.append(client)
        data = b"".join(random_request(rng) for _ in range(rng.randint(1, 3)))
        cut = data[: rng.randint(0, len(data))] if rng.random() < 0.4 else data
        with contextlib.suppress(OSError):
            for part in range(0, len(cut), step := rng.choice([7000, 60_000, 1 << 20])):
                client.socket.sendall(cut[part : part + step])
            if rng.random() < 0.5:
                client.socket.recv(1000)
        if len(open_ones) > 9:
            end(open_ones.pop(rng.randrange(len(open_ones))))
    for client in open_ones:
        end(client)
    wait_until(lambda: server.stats().connections_open == 0, "all are closed")
    wait_until(lambda: held(server) == 0, "no body is counted")
    wait_until(lambda: len(server._acceptor.clients) == 0, "no client is counted")
    wait_until(lambda: len(os.listdir("/dev/fd")) == before, "no descriptor is left")
    assert set(server.stats().responses_by_status) <= {200, 400, 401, 405, 408, 413, 415, 503}
    with RawClient(server.port) as client:
        assert client.request("POST", "/echo", b"x", {"X-Key": "right"}).body == b"x"
