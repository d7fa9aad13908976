"""Fixtures: a started server and clients for it; nothing between them but a socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from cllm.http import HttpHandler, Server, ServerConfig
from tests.http.http_wire import (
    Connect,
    RawClient,
    Serve,
    basic_handler,
    ignore_running_threads,
    server_threads,
)


@pytest.fixture(autouse=True)
def only_own_threads() -> None:
    ignore_running_threads()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers on free ports: `serve(handler, workers=2, head_timeout=0.2, …)`."""
    servers: list[Server] = []

    def start(handler: HttpHandler | None = None, host: str = "127.0.0.1", **config: Any) -> Server:
        config.setdefault("workers", 4)
        server = Server(handler or basic_handler(), host, 0, ServerConfig(**config))
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(grace=0)
    assert server_threads() == [], "stop() leaves no thread"


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open client connections: `connect(server)`; they are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_client(server: Server, **options: Any) -> RawClient:
            return stack.enter_context(RawClient(server.port, **options))

        yield open_client
