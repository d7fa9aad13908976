"""Responses that leave together: none is lost or waits for a handler; a lone one never waits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from cllm.http import HttpResponse
from cllm.http.connection import Connection
from cllm.http.transport import reset
from tests.http.http_wire import (
    HTTP_1,
    PATIENCE,
    Connect,
    Gate,
    RawClient,
    Serve,
    basic_handler,
    encode,
    wait_until,
)

PROTOCOLS = HTTP_1
TRIES = 200  # until one poll finds both requests; the first one mostly does
ROOT = encode()


class Together:
    """A server that finds the requests of two clients, A and B, in one poll.

    The response to the first is then held, since the other one waits. A handler sends both
    requests, on the worker that polls next.
    """

    def __init__(self, serve: Serve, connect: Connect) -> None:
        self.others, self.gate = Gate(), Gate()
        self.on_hold: Callable[[RawClient], object] = lambda client: None  # the first time
        self.held: list[RawClient] = []
        self._requests: list[tuple[RawClient, bytes]] = []
        handler = basic_handler()
        handler.get("/both", lambda request: self._send_both())
        handler.get("/other", self.others)
        handler.get("/gate", self.gate)
        handler.get("/long", lambda request: HttpResponse.bytes(b"x" * 10_000))
        self.server = serve(handler, workers=4)
        self._connect = connect
        self._hold = self.server._context.hold
        self.server._context.hold = self._held
        self._trigger, self.a, self.b = (self.connect() for _ in range(3))
        self._ports = {each.socket.getsockname()[1]: each for each in (self.a, self.b)}
        assert [client.get().status for client in (self.a, self.b)] == [200, 200]

    def connect(self) -> RawClient:
        return self._connect(self.server)

    def _held(self, connection: Connection) -> None:
        client = self._ports.get(connection.client[1])
        if client is not None:
            self.held.append(client)
            if len(self.held) == 1:
                self.on_hold(client)
        self._hold(connection)

    def _send_both(self) -> str:
        for client, request in self._requests:
            client.send(request)
        return "sent"

    def send(self, a: bytes = ROOT, b: bytes = ROOT, *more: tuple[RawClient, bytes]) -> None:
        self._requests = [(self.a, a), (self.b, b), *more]
        assert self._trigger.get("/both").body == b"sent"

    def hold(self) -> tuple[RawClient, RawClient]:
        """Send both until a response is held; its client, and the other one, which has its own."""
        for _ in range(TRIES):
            self.send()
            for client in (self.a, self.b):
                try:
                    assert client.reply().body == b"root"
                except (OSError, EOFError):
                    assert client in self.held, "only a client that left has no response"
            if self.held:
                break
        held = self.held[0]
        return held, self.b if held is self.a else self.a


@pytest.fixture
def together(serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Together:
    # One that waits is enough; and the first response comes long after the one before it.
    monkeypatch.setattr("cllm.http.http1.FEW", 0)
    monkeypatch.setattr("cllm.http.connection_queue.FEW", -100)
    monkeypatch.setattr("cllm.http.connection_queue.HOLD_TIME", 1e9)
    return Together(serve, connect)


@pytest.mark.parametrize("blocked", [0, 1, 2, 3])
def test_a_held_response_leaves_while_the_next_handler_blocks(
    together: Together, blocked: int
) -> None:
    others = [together.connect() for _ in range(blocked)]
    for client in others:
        client.send(encode(path="/other"))
    together.others.wait_entered(blocked)
    more = [together.connect() for _ in range(3)]
    gate = encode(path="/gate")
    for _ in range(TRIES):
        together.gate.opened.clear()
        together.send(ROOT, gate, *((client, gate) for client in more))
        together.gate.wait_entered(4 - blocked)  # no worker is left
        try:
            assert together.a.reply().body == b"root"
        finally:
            together.gate.opened.set()
        assert [client.reply().body for client in (together.b, *more)] == [b"through"] * 4
        together.gate.wait_entered(blocked)
        if together.a in together.held:
            break
    assert together.a in together.held
    together.others.opened.set()
    assert [client.reply().body for client in others] == [b"through"] * blocked


def test_a_request_that_comes_while_the_response_is_held_is_answered(together: Together) -> None:
    together.on_hold = lambda client: client.send(encode(path="/path/next"))
    held, other = together.hold()
    assert held.reply().body == b"next"
    assert [client.get("/health").status for client in (held, other)] == [200, 200]


def end(client: RawClient) -> None:
    socket.socket.shutdown(client.socket, socket.SHUT_RDWR)


def break_off(client: RawClient) -> None:
    reset(client.socket)


@pytest.mark.parametrize("leave", [end, break_off, RawClient.half_close])
def test_a_client_may_leave_while_its_response_is_held(
    together: Together, leave: Callable[[RawClient], None]
) -> None:
    together.on_hold = leave
    _, other = together.hold()
    wait_until(lambda: together.server.stats().connections_open == 2, "its connection is closed")
    assert other.get("/health").status == 200


def test_a_stop_sends_a_held_response(together: Together) -> None:
    stop = threading.Thread(target=together.server.stop)

    def stop_now(client: RawClient) -> None:
        stop.start()
        wait_until(lambda: together.server._context.draining, "the server stops")

    together.on_hold = stop_now
    held, _ = together.hold()
    assert held.ended()
    stop.join(PATIENCE)
    assert not stop.is_alive()


def test_a_look_at_its_deadline_does_not_harm_a_held_response(together: Together) -> None:
    def look(client: RawClient) -> None:
        for connection in list(together.server._connections.values()):
            connection.attend()

    together.on_hold = look
    held, other = together.hold()
    assert [client.get("/health").status for client in (held, other)] == [200, 200]


def test_held_responses_are_counted_when_they_leave(together: Together) -> None:
    together.hold()
    stats = together.server.stats

    def all_counted() -> bool:
        return stats().responses_by_status == {200: stats().requests_total}

    wait_until(all_counted, "all are counted")


def test_a_lone_request_is_not_held(together: Together) -> None:
    for _ in range(50):
        assert together.a.get().body == b"root"
    assert together.held == []


@pytest.mark.parametrize(
    "request_bytes", [encode(path="/long"), encode(headers={"Connection": "close"})]
)
def test_a_long_or_last_response_is_not_held(together: Together, request_bytes: bytes) -> None:
    assert together.a.get("/long").status == 200
    together.send(request_bytes, request_bytes)
    assert [client.reply().status for client in (together.a, together.b)] == [200, 200]
    assert together.held == []
