"""A server: where it listens, what it reports, how it refuses."""

from __future__ import annotations

import logging
import re
import socket
import threading
from functools import partial

import pytest

from cllm.http import HttpHandler, HttpRequest, HttpResponse, HttpServerError, Server, ServerConfig
from tests.http.http_wire import (
    HTTP_1,
    Connect,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    server_threads,
    wait_until,
)

PROTOCOLS = HTTP_1


@any_version
def test_it_answers_when_start_has_returned(serve: Serve, connect: Connect) -> None:
    reply = connect(serve()).get("/health")
    assert reply.status == 200
    assert reply.body == b'{"status":"healthy"}'


def test_port_0_picks_a_free_one_and_tells(serve: Serve) -> None:
    first, second = serve(), serve()
    assert first.port != second.port
    assert 0 not in (first.port, second.port)


def _say(text: str, request: HttpRequest) -> str:
    return text


@any_version
def test_several_servers_in_one_process_are_apart(serve: Serve, connect: Connect) -> None:
    names = ("left", "right")
    servers = []
    for name in names:
        handler = HttpHandler()
        handler.get("/", partial(_say, name))
        servers.append(serve(handler))
    assert [connect(server).get().body.decode() for server in servers] == list(names)


def test_a_taken_port_is_named_with_a_remedy(serve: Serve) -> None:
    taken = serve().port
    with pytest.raises(HttpServerError, match=rf"127\.0\.0\.1:{taken} is in use.*another port"):
        Server(basic_handler(), "127.0.0.1", taken).start()
    assert len(server_threads()) == 6, "the one that failed started no thread"


def test_a_server_that_could_not_start_can_start_later(serve: Serve) -> None:
    first = serve()
    second = Server(basic_handler(), "127.0.0.1", first.port, ServerConfig(workers=1))
    with pytest.raises(HttpServerError):
        second.start()
    first.stop()
    with second, RawClient(second.port) as client:
        assert client.get("/health").status == 200


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 300])
def test_a_host_that_is_not_this_machine_is_named(host: str) -> None:
    with pytest.raises(HttpServerError, match=re.escape(host)):
        Server(basic_handler(), host, 0).start()


def test_a_port_out_of_range_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="70000"):
        Server(basic_handler(), "127.0.0.1", 70000)


@any_version
def test_starting_twice_is_refused_and_changes_nothing(serve: Serve, connect: Connect) -> None:
    server = serve()
    with pytest.raises(HttpServerError, match="already running"):
        server.start()
    assert connect(server).get().status == 200


def test_the_same_server_starts_again_after_its_end() -> None:
    server = Server(basic_handler(), "127.0.0.1", 0, ServerConfig(workers=2))
    running = []
    for _ in range(3):
        running.append(server.is_running)
        with server:
            running.append(server.is_running)
            with RawClient(server.port) as client:
                assert client.get().body == b"root"
    assert [*running, server.is_running] == [False, True] * 3 + [False]


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
def test_an_ipv6_host(serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cllm")
    server = serve(host="::1")
    assert connect(server, host="::1").get().status == 200
    assert f"{server.scheme}://[::1]:{server.port}" in caplog.text
    with pytest.raises(HttpServerError, match=re.escape(f"[::1]:{server.port}")):
        Server(basic_handler(), "::1", server.port).start()


@any_version
@needs_ipv6
def test_all_addresses_share_one_port(serve: Serve, connect: Connect) -> None:
    server = serve(host="")
    assert connect(server, host="::1").get().status == 200
    assert connect(server, host="127.0.0.1").get().status == 200


def test_threads_have_names(serve: Serve) -> None:
    serve(workers=3)
    names = {"cllm-acceptor", "cllm-access-log", "cllm-worker-0", "cllm-worker-1", "cllm-worker-2"}
    assert set(server_threads()) == names


@any_version
def test_errors_have_the_json_shape(serve: Serve, connect: Connect) -> None:
    reply = connect(serve()).get("/nothing")
    assert reply.status == 404
    assert reply.json() == {"success": False, "error": "no endpoint has the path /nothing"}


@any_version
def test_head_has_the_fields_of_get_and_no_body(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    get, head = client.get("/health"), client.request("HEAD", "/health")
    assert head.headers["content-length"] == get.headers["content-length"] == "20"
    assert client.get("/health").body == get.body, "nothing of a body stood in the way"


@pytest.mark.parametrize("error", [KeyError("a secret"), SystemExit("a secret")])
@any_version
def test_a_handler_that_fails_gives_500_with_the_id_of_the_log(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail(request: HttpRequest) -> str:
        raise error

    handler = basic_handler()
    handler.get("/fail", fail)
    client = connect(serve(handler, workers=1))
    reply = client.get("/fail")
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert reply.headers["x-request-id"] in reply.json()["error"]
    assert reply.headers["x-request-id"] in caplog.text
    assert client.get("/health").status == 200, "the connection goes on"


@any_version
def test_a_response_that_cannot_be_sent_is_a_500(serve: Serve, connect: Connect) -> None:
    handler = basic_handler()
    handler.get("/split", lambda request: HttpResponse(200, [("X-A", "b\r\nSet-Cookie: c")]))
    client = connect(serve(handler))
    reply = client.get("/split")
    assert reply.status == 500
    assert b"Set-Cookie" not in reply.head
    assert client.get("/health").status == 200


@any_version
def test_the_clients_request_id_is_taken_over(serve: Serve, connect: Connect) -> None:
    reply = connect(serve()).get("/health", X_Request_Id="from:the-client_1")
    assert reply.headers["x-request-id"] == "from:the-client_1"


@pytest.mark.parametrize("bad", ["", "with blank", 'quo"te', "x" * 129, "ä"])
@any_version
def test_a_request_id_that_cannot_be_used_is_replaced(
    serve: Serve, connect: Connect, bad: str
) -> None:
    client = connect(serve())
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: " + bad.encode() + b"\r\n\r\n")
    reply = client.reply()
    assert reply.status == 200
    assert reply.headers["x-request-id"] not in ("", bad)


@any_version
def test_request_ids_are_unique(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    assert len({client.get().headers["x-request-id"] for _ in range(50)}) == 50


def test_one_access_log_line_a_request(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cllm.access")
    client = connect(serve())
    port = client.socket.getsockname()[1]
    client.get("/health?key=secret", X_Request_Id="first")
    client.get('/a"b%20c', X_Request_Id="second")
    client.send(b"NONSENSE\r\n\r\n")
    assert client.reply().status == 400
    patterns = (
        rf"client=127\.0\.0\.1:{port} method=GET path=/health status=200 bytes=20 "
        r"ms=\d+\.\d\d id=first",
        r'client=\S+ method=GET path="/a\\"b c" status=404 bytes=\d+ ms=\d+\.\d\d id=second',
        r"client=\S+ method=- path=- status=400 bytes=\d+ ms=\d+\.\d\d id=-",
    )
    # A line is written when its response has left, so the client may be a little earlier.
    wait_until(lambda: len(caplog.records) >= 3, "three lines are written")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


@any_version
def test_no_access_log_where_it_is_off(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cllm.access")
    server = serve(access_log=False)
    connect(server).get("/health")
    server.stop()
    assert [record for record in caplog.records if record.name == "cllm.access"] == []


@any_version
def test_cross_origin_requests_where_the_configuration_allows_them(
    serve: Serve, connect: Connect
) -> None:
    client = connect(serve(cors_origins=("https://a.example",)))
    reply = client.get("/health", Origin="https://a.example")
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    reply = client.get("/health", Origin="https://b.example")
    assert "access-control-allow-origin" not in reply.headers


@any_version
def test_stats_count_what_happened(serve: Serve, connect: Connect) -> None:
    server = serve(workers=3)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.get("/health")
    clients[0].get("/nothing")
    wait_until(lambda: server.stats().parked == 4, "all four connections are parked")
    stats = server.stats()
    assert (stats.connections_open, stats.accepted_total) == (4, 4)
    assert stats.requests_total == 5
    assert stats.responses_by_status == {200: 4, 404: 1}
    assert (stats.workers, stats.workers_busy, stats.queue_depth) == (3, 0, 0)
    for client in clients:
        client.close()
    wait_until(lambda: server.stats().connections_open == 0, "their end is seen")


@any_version
def test_handlers_see_the_client_and_the_whole_request(serve: Serve, connect: Connect) -> None:
    seen: list[HttpRequest] = []
    handler = HttpHandler()
    handler.post("/a/{name}", seen.append)
    client = connect(serve(handler))
    client.request("POST", "/a/b%20c?x=1", b"body", {"X-Y": "z"})
    (request,) = seen
    assert request.client == client.socket.getsockname()[:2]
    assert (request.method, request.body, request.query) == ("POST", b"body", {"x": "1"})
    assert request.path_params == {"name": "b c"}
    assert request.headers["x-y"] == "z"


@any_version
def test_requests_run_side_by_side(serve: Serve, connect: Connect) -> None:
    everybody = threading.Barrier(4, timeout=10)
    handler = HttpHandler()
    handler.get("/", lambda request: str(everybody.wait()))
    server = serve(handler, workers=4)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.send(encode())
    assert sorted(client.reply().body for client in clients) == [b"0", b"1", b"2", b"3"]
