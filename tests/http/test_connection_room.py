"""Room for new connections: idle ones are closed for them, and no client takes all."""

from __future__ import annotations

import logging
import socket
import threading

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    HttpHandler,
    HttpResponse,
    Server,
    acceptor,
    connection_room,
)
from cllm.http.connection_room import MIN_IDLE, ClientCounts, IdleConnections
from cllm.http.http2.http2 import Http2
from tests.http.http_wire import (
    HTTP_1,
    PATIENCE,
    Connect,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    turned_away,
    wait_until,
)

PROTOCOLS = HTTP_1


def idle(server: Server) -> int:
    """How many connections wait for a request; one whose handshake goes on does not."""
    connections = list(server._connections.values())
    return sum(connection.idle_since is not None for connection in connections)


@any_version
def test_at_the_limit_a_silent_connection_is_closed_for_a_new_one(
    serve: Serve, connect: Connect, protocol: str
) -> None:
    server = serve(max_connections=8)

    def prefaced() -> bool:
        protocols = [connection._protocol for connection in list(server._connections.values())]
        return protocol in HTTP_1 or all(isinstance(each, Http2) for each in protocols)

    silent: list[RawClient] = []
    while len(silent) < 8:  # one by one: workers may read prefaces of HTTP/2 in any order
        silent.append(connect(server))
        wait_until(lambda: prefaced() and idle(server) == len(silent), "it waits for a request")
    assert connect(server).get().status == 200
    stats = server.stats()
    assert (stats.reclaimed_total, stats.connections_open) == (1, 8)
    assert silent[0].ended(), "the one that is nearest to its deadline"
    assert silent[1].get().status == 200, "the others stay"


@any_version
def test_one_that_never_asked_goes_before_one_that_was_served(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_room, "MIN_IDLE", 0.0)  # else the one that is older can be first
    server = serve(max_connections=2)
    used = connect(server)
    assert used.get().status == 200
    silent = connect(server)
    wait_until(lambda: idle(server) == 2, "both wait for a request")
    assert connect(server).get().status == 200
    assert silent.ended()
    assert used.get().status == 200


@any_version
def test_what_is_busy_is_not_closed(serve: Serve, connect: Connect, protocol: str) -> None:
    stream, later = BodyStream(), DeferredResponse()
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    handler.get("/later", lambda request: later)
    server = serve(handler, max_connections=4)
    head, body, streaming = (connect(server) for _ in range(3))
    # A part of a head; HTTP/2 has heads in frames.
    head.send(b"GET / HTTP/1.1\r\nHost: a\r\n" if protocol in HTTP_1 else encode(path="/later"))
    body.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx")
    streaming.send(encode(path="/stream"))
    stream.write(b"one")
    assert streaming.reply_head().status == 200
    idle = connect(server)
    wait_until(lambda: server.stats().connections_open == 4, "all are accepted")
    for _ in range(3):
        with connect(server) as new:
            assert new.get().status == 200
    assert idle.ended()
    if protocol in HTTP_1:
        head.send(b"\r\n")
    later.resolve(HttpResponse.text("later"))
    body.send(b"y")
    stream.write(b"two")
    stream.close()
    assert head.reply().status == 200
    assert body.reply().body == b"xy"
    assert [streaming.chunk(), streaming.chunk()] == [b"one", b"two"]


@any_version
def test_a_pipelining_client_is_not_closed_between_its_requests(
    serve: Serve, connect: Connect
) -> None:
    """New clients come without end while others go on asking: each request gets its response."""
    server = serve(max_connections=6)
    stop = threading.Event()
    wrong: list[object] = []

    def ask(client: RawClient) -> None:
        while not stop.is_set():
            reply = client.get("/health")
            if reply.status != 200:
                wrong.append(reply)

    def visit() -> None:
        while not stop.is_set():
            with connect(server) as client:
                if client.get().status != 200:
                    wrong.append(client)

    def guarded(function: object, *arguments: object) -> None:
        try:
            function(*arguments)  # type: ignore[operator]
        except (OSError, EOFError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(ask, connect(server))) for _ in range(3)]
    threads += [threading.Thread(target=guarded, args=(visit,)) for _ in range(4)]
    silent = [connect(server) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert all(client.ended() for client in silent)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert wrong == []


def test_silent_clients_that_come_back_at_once_lock_nobody_out(
    serve: Serve, connect: Connect
) -> None:
    server = serve(max_connections=50)
    stop = threading.Event()

    def hold() -> None:
        crowd = [RawClient(server.port) for _ in range(20)]
        while not stop.is_set():
            for index, client in enumerate(crowd):
                client.socket.settimeout(0.001)
                try:
                    if client.socket.recv(1) == b"":
                        client.close()
                        crowd[index] = RawClient(server.port)
                except TimeoutError:
                    continue
        for client in crowd:
            client.close()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: server.stats().connections_open >= 50, "the table is full")
        for _ in range(3):
            with connect(server) as client:
                assert client.get().status == 200
        assert server.stats().connections_open <= 51
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


class Idle:
    """As much of a connection as the list looks at."""

    def __init__(self, since: float | None, deadline: float) -> None:
        self.idle_since = since
        self.deadline = deadline
        self.closed = False

    def close_if_idle(self) -> bool:
        self.closed = self.idle_since is not None
        return self.closed


def test_one_look_serves_many_and_a_used_connection_falls_out_of_the_list() -> None:
    now = 1000.0
    table = {n: Idle(now - 50, now + 50 - n) for n in range(5)}
    idle = IdleConnections(table)  # type: ignore[arg-type]
    assert idle.found(now)
    table[4].deadline += 60  # it was used since the look
    table[3].idle_since = None  # it is used now
    table[9] = Idle(now - 60, now)  # it came since
    assert idle.close_one(now)
    assert [n for n in table if table[n].closed] == [2]
    assert idle.close_one(now)
    assert idle.close_one(now)
    assert not idle.found(now + 0.01), "the table is not looked at for each"
    assert idle.found(idle.next_look)


def test_a_list_does_not_outlive_the_time_after_which_others_may_be_closed() -> None:
    now = 1000.0
    table = {n: Idle(now - 50, now + 50 + n) for n in range(2)}
    idle = IdleConnections(table)  # type: ignore[arg-type]
    assert idle.close_one(now)
    assert table[0].closed
    table[0] = Idle(now, now + 10)  # came after the scan, and has the nearest deadline
    assert idle.close_one(now + MIN_IDLE + 0.2)
    assert table[0].closed and not table[1].closed


def test_a_connection_just_accepted_has_a_second_to_send() -> None:
    now = 1000.0
    idle = IdleConnections({1: Idle(now - MIN_IDLE / 2, now + 9)})  # type: ignore[dict-item]
    assert not idle.found(now)
    assert idle.next_look == now + MIN_IDLE / 2
    assert idle.found(idle.next_look)


# Of one client


@any_version
def test_a_client_may_have_so_many_connections(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(acceptor, "WARN_INTERVAL", 10 * PATIENCE)
    server = serve(max_connections_per_client=3)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        assert client.get().status == 200
    with caplog.at_level(logging.WARNING):
        assert turned_away(connect, server)
        assert turned_away(connect, server)
    assert caplog.text.count("127.0.0.1") == 1, "one warning"
    assert server.stats().turned_away_total == 2
    for client in clients:
        assert client.get().status == 200
    clients[0].close()

    def served() -> bool:
        try:
            return connect(server).get().status == 200
        except (EOFError, OSError):  # refused: the count may fall a moment later
            return False

    wait_until(served, "one that closed makes room for another")


@any_version
def test_a_client_with_all_it_may_have_closes_nobodys_connection(
    serve: Serve, connect: Connect
) -> None:
    server = serve(max_connections=3, max_connections_per_client=3)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        assert client.get().status == 200
    assert turned_away(connect, server)
    assert server.stats().reclaimed_total == 0


def test_counts_are_right_however_connections_end(serve: Serve, connect: Connect) -> None:
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(BodyStream()))
    server = serve(handler, max_connections_per_client=10, linger_timeout=0.0)

    def silent(client: RawClient) -> None:
        client.close()

    def reset_in_a_head(client: RawClient) -> None:
        client.send(b"GET")
        client.reset()

    def nonsense(client: RawClient) -> None:
        client.send(b"NONSENSE\r\n\r\n")
        client.reply()
        client.close()

    def reset_in_a_stream(client: RawClient) -> None:
        client.send(encode(path="/stream"))
        client.reset()

    def closed_as_asked(client: RawClient) -> None:
        client.request(headers={"Connection": "close"})
        assert client.ended()

    ends = (silent, reset_in_a_head, nonsense, reset_in_a_stream, closed_as_asked)
    for round_ in range(20):
        for end in ends:
            end(connect(server))
        wait_until(lambda: server.stats().connections_open == 0, f"round {round_} has ended")
    wait_until(lambda: len(server._acceptor.clients) == 0, "none is counted")
    assert server.stats().turned_away_total == 0


def test_a_connection_that_was_reset_before_it_began_is_not_counted(serve: Serve) -> None:
    server = serve(max_connections_per_client=1)
    # A socket without TCP_NODELAY stands for the TCP socket of macOS whose peer has reset it.
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert server._acceptor.enter("192.0.2.1")
        server._admit(ours, ("192.0.2.1", 4711))
        assert theirs.recv(1) == b"", "it is closed"
    assert len(server._acceptor.clients) == 0


def test_addresses_and_networks_are_counted() -> None:
    counts = ClientCounts(1, with_loopback=False)
    assert counts.enter("192.0.2.1")
    assert not counts.enter("192.0.2.1")
    assert counts.enter("192.0.2.2")
    assert counts.enter("2001:db8::1")
    assert not counts.enter("2001:db8::2"), "one client has a whole /64"
    assert counts.enter("2001:db8:0:1::1")
    assert counts.enter("fe80::1%eth0")
    for host in ("127.0.0.1", "127.9.9.9", "::1"):
        assert counts.enter(host) and counts.enter(host), "this machine is not limited"
        counts.leave(host)
    for host in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "fe80::1%eth0"):
        counts.leave(host)
    assert len(counts) == 0


def test_without_a_limit_nothing_is_counted() -> None:
    counts = ClientCounts(0, with_loopback=True)
    assert all(counts.enter("192.0.2.1") for _ in range(3))
    assert len(counts) == 0


@any_version
def test_by_default_loopback_has_the_whole_table(serve: Serve, connect: Connect) -> None:
    server = serve(max_connections=4)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        assert client.get().status == 200


@pytest.mark.parametrize(("limit", "expected"), [(None, 4), (0, 0), (2, 2)])
def test_a_client_may_have_half_of_the_table_unless_set(
    serve: Serve, limit: int | None, expected: int
) -> None:
    server = serve(HttpHandler(), max_connections=7, max_connections_per_client=limit)
    assert server._acceptor.clients._limit == expected
