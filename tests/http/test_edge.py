"""Parked connections stay armed: what the poller reports only once is never missed."""

from __future__ import annotations

import socket

import pytest

from cllm.http import Server
from cllm.http.connection import IDLE, RUNNING_AGAIN, Connection
from cllm.http.http1 import TURN_REQUESTS
from cllm.http.poller import EDGE, READ
from tests.http.http_wire import (
    PATIENCE,
    Connect,
    Gate,
    RawClient,
    Serve,
    basic_handler,
    encode,
    wait_until,
)

assert PATIENCE < 75, "no deadline of the server may hide that bytes or an end were missed"


def serve_gate(serve: Serve) -> tuple[Server, Gate]:
    """A server whose one worker stays in the gate until it is opened."""
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    return serve(handler, workers=1), gate


def connection_of(server: Server, client: RawClient) -> Connection:
    address = client.socket.getsockname()
    return next(each for each in server._connections.values() if each.client == address)


def test_an_end_that_comes_with_a_request_is_seen_while_others_wait(
    serve: Serve, connect: Connect
) -> None:
    server, gate = serve_gate(serve)
    holder, leaving, other = connect(server), connect(server), connect(server)
    for client in (holder, leaving, other):
        assert client.get().status == 200
    holder.send(encode(path="/gate"))
    gate.wait_entered()
    leaving.send(encode())
    leaving.half_close()
    ending = connection_of(server, leaving)
    wait_until(lambda: ending.armed == 0, "the poller has reported the end")
    other.send(encode())
    wait_until(lambda: server.stats().queue_depth == 2, "both wait for the worker")
    gate.opened.set()
    assert leaving.reply().status == 200
    assert leaving.ended()
    assert other.reply().status == 200


def test_a_request_that_comes_during_a_turn_is_read_although_others_wait(
    serve: Serve, connect: Connect
) -> None:
    server, gate = serve_gate(serve)
    client, other = connect(server), connect(server)
    for each in (client, other):
        assert each.get().status == 200
    client.send(encode(path="/gate") + TURN_REQUESTS * encode())  # one more than a turn takes
    gate.wait_entered()
    other.send(4 * TURN_REQUESTS * encode())  # in the queue before and after the next turn
    wait_until(lambda: server.stats().queue_depth == 1, "the other client waits for the worker")
    client.send(encode(path="/health"))
    running = connection_of(server, client)
    wait_until(lambda: running.state is RUNNING_AGAIN, "the poller has reported the last request")
    gate.opened.set()
    assert [client.reply().status for _ in range(TURN_REQUESTS + 2)] == [200] * (TURN_REQUESTS + 2)
    assert [other.reply().status for _ in range(4 * TURN_REQUESTS)] == [200] * 4 * TURN_REQUESTS


def test_a_request_with_urgent_data_in_it_is_read_while_others_wait(
    serve: Serve, connect: Connect
) -> None:
    server, gate = serve_gate(serve)
    holder, client, other = connect(server), connect(server), connect(server)
    for each in (holder, client, other):
        assert each.get().status == 200
    holder.send(encode(path="/gate"))
    gate.wait_entered()
    request = encode()
    client.send(request[:10])
    client.socket.send(b"!", socket.MSG_OOB)  # a read ends before it, although more has come
    client.send(request[10:])
    wait_until(lambda: server.stats().queue_depth == 1, "it waits for the worker")
    other.send(encode())
    wait_until(lambda: server.stats().queue_depth == 2, "both wait for the worker")
    gate.opened.set()
    assert client.reply().status == 200
    assert other.reply().status == 200


def test_a_client_that_sends_one_byte_at_a_time_is_served(serve: Serve, connect: Connect) -> None:
    server, _gate = serve_gate(serve)
    client = connect(server)
    for byte in 3 * encode():
        client.send(bytes((byte,)))
    assert [client.reply().status for _ in range(3)] == [200] * 3


@pytest.mark.skipif(EDGE == READ, reason="kqueue's registrations fire once")
def test_a_request_costs_no_change_of_its_registration(serve: Serve, connect: Connect) -> None:
    server, _gate = serve_gate(serve)
    client = connect(server)
    assert client.get().status == 200
    connection = connection_of(server, client)
    wait_until(lambda: (connection.armed, connection.state) == (EDGE, IDLE), "it is parked")
    changes: list[int] = []
    rearm = connection._rearm

    def counted(fd: int, interest: int) -> None:
        changes.append(interest)
        rearm(fd, interest)

    connection._rearm = counted
    for _ in range(50):
        assert client.get().status == 200
    assert changes == []
