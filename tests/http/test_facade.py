"""HttpServer: init, start, stop, isRunning, as the C++ interface has them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

import cllm
from cllm.http import (
    HttpHandler,
    HttpRequest,
    HttpServer,
    HttpServerError,
    ServerConfig,
    TlsConfig,
)
from tests.http.conftest import OVER
from tests.http.http_wire import RawClient, basic_handler, server_threads


@pytest.fixture(autouse=True)
def stopped_afterwards() -> Iterator[None]:
    yield
    HttpServer.stop(grace=0)
    assert server_threads() == []


def init(port: int = 0, handler: HttpHandler | None = None, tls: TlsConfig | None = None) -> None:
    config = ServerConfig(workers=2)
    HttpServer.init("127.0.0.1", port, handler or basic_handler(), config, tls=tls)


@pytest.mark.parametrize("protocol", OVER)
def test_its_life(protocol: str) -> None:
    tls, client_kind = OVER[protocol]
    assert not HttpServer.isRunning()
    init(tls=tls)
    assert not HttpServer.isRunning()
    HttpServer.start()
    assert HttpServer.isRunning()
    with client_kind(HttpServer.port()) as client:
        assert client.get("/health").status == 200
    HttpServer.stop()
    assert not HttpServer.isRunning()


def _say(text: str, request: HttpRequest) -> str:
    return text


def test_it_may_be_initialised_again_after_stop() -> None:
    for text in ("first", "second"):
        handler = HttpHandler()
        handler.get("/", partial(_say, text))
        init(handler=handler)
        HttpServer.start()
        with RawClient(HttpServer.port()) as client:
            assert client.get().body.decode() == text
        HttpServer.stop()


def test_init_twice_is_refused() -> None:
    init()
    with pytest.raises(HttpServerError, match=r"stop\(\) first"):
        init()


def test_start_before_init_is_refused() -> None:
    with pytest.raises(HttpServerError, match="init"):
        HttpServer.start()


def test_start_twice_is_refused() -> None:
    init()
    HttpServer.start()
    with pytest.raises(HttpServerError, match="already running"):
        HttpServer.start()
    assert HttpServer.isRunning()


def test_stop_before_init_and_twice_does_nothing() -> None:
    HttpServer.stop()
    init()
    HttpServer.stop()
    HttpServer.stop()


def test_a_taken_port_leaves_it_initialised_for_another_try() -> None:
    init()
    HttpServer.start()
    port = HttpServer.port()
    HttpServer.stop()
    with RawClientListener(port):
        init(port)
        with pytest.raises(HttpServerError, match=f"127.0.0.1:{port} is in use"):
            HttpServer.start()
        assert not HttpServer.isRunning()
    HttpServer.start()
    assert HttpServer.port() == port


class RawClientListener:
    """Another program on that port."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.socket.listen()

    def __enter__(self) -> RawClientListener:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


def test_of_many_threads_one_initialises() -> None:
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            init()
            outcomes.append("initialised")
        except HttpServerError:
            outcomes.append("refused")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["initialised"] + ["refused"] * 7


def test_the_package_has_it_without_the_engine() -> None:
    assert cllm.HttpServer is HttpServer
