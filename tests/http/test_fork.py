"""A handler that forks: the child keeps no connection and no port open."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from cllm.http import BodyStream, HttpHandler, HttpRequest, HttpResponse, Server, ServerConfig
from cllm.http.connection import IDLE
from tests.http.http2.http2_wire import GOAWAY, Http2Client
from tests.http.http_wire import HTTP_1, Connect, Serve, any_version, encode, wait_until

PROTOCOLS = HTTP_1

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork(2)"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


class Children:
    """Children that inherit every descriptor and sleep until the test ends."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def fork(self) -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        self.ids.append(child)

    def end(self) -> None:
        for child in self.ids:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.end()


def forking(children: Children) -> HttpHandler:
    def fork(request: HttpRequest) -> HttpResponse:
        children.fork()
        return HttpResponse.text("forked")

    handler = HttpHandler()
    handler.get("/", fork)
    handler.get("/health", lambda request: "healthy")
    return handler


def test_the_client_sees_the_end(serve: Serve, connect: Connect, children: Children) -> None:
    client = connect(serve(forking(children)))
    assert client.get("/", Connection="close").body == b"forked"
    assert client.ended()
    assert len(children.ids) == 1


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_a_response_that_is_broken_off_is_reset(
    serve: Serve, connect: Connect, children: Children, version: str
) -> None:
    stream = BodyStream()
    handler = forking(children)
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    server = serve(handler)
    client = connect(server)
    client.send(encode(path="/stream", version=version))
    client.reply_head()
    assert connect(server).get("/").status == 200
    stream.cancel("it failed")
    with pytest.raises(ConnectionResetError):
        client.rest()


def test_the_port_is_free_after_the_stop(children: Children) -> None:
    server = Server(forking(children), port=0, config=ServerConfig(workers=2))
    server.start()
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port))) as client:
        client.sendall(encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    server.stop(grace=0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    again = Server(forking(children), port=server.port, config=ServerConfig(workers=2))
    again.start()
    again.stop(grace=0)


def close_in_a_child(server: Server) -> None:
    """Fork; the child closes the connections that it inherited."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for connection in list(server._connections.values()):
                connection.close()
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@any_version
def test_a_child_that_closes_what_it_inherited_ends_no_connection_of_its_parent(
    serve: Serve, connect: Connect
) -> None:
    server = serve()
    client = connect(server)
    assert client.get("/health").status == 200
    close_in_a_child(server)
    assert client.get("/health").status == 200


def test_a_child_that_closes_an_inherited_http2_connection_sends_nothing_on_it(
    serve: Serve,
) -> None:
    server = serve(tls=None)
    with Http2Client(server.port) as client:
        assert client.request().status == 200
        (parked,) = server._connections.values()
        wait_until(lambda: parked.state is IDLE, "nothing is being sent")
        close_in_a_child(server)
        assert client.request().status == 200
        assert GOAWAY not in {frame.kind for frame in client.seen}
