"""Fixtures: a started server and clients for it; nothing between them but a socket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from cllm.http import HttpHandler, Server, ServerConfig, TlsConfig
from tests.http.http2.translated import TranslatingClient, TranslatingTlsClient
from tests.http.http_wire import (
    HTTP_1,
    HTTP_2,
    TRANSPORTS,
    Connect,
    RawClient,
    Serve,
    basic_handler,
    ignore_running_threads,
    server_threads,
)

OVER: dict[str, tuple[TlsConfig | None, type[RawClient]]] = {
    **TRANSPORTS,
    "http/2": (None, TranslatingClient),
    "https/2": (TRANSPORTS["https/1.1"][0], TranslatingTlsClient),
}


@pytest.fixture(autouse=True)
def only_own_threads() -> None:
    ignore_running_threads()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module over the PROTOCOLS that it names; see TRANSPORTS.

    Those that are marked `any_version` run over all four.
    """
    protocols = getattr(metafunc.module, "PROTOCOLS", None)
    if protocols is not None and metafunc.definition.get_closest_marker("any_version"):
        protocols = (*HTTP_1, *HTTP_2)
    if protocols is not None and "protocol" in metafunc.fixturenames:
        metafunc.parametrize("protocol", protocols, indirect=True)


@pytest.fixture
def protocol(request: pytest.FixtureRequest) -> str:
    """What `serve` and `connect` use, a key of TRANSPORTS."""
    return str(getattr(request, "param", "http/1.1"))


@pytest.fixture
def serve(protocol: str) -> Iterator[Serve]:
    """Start servers on free ports: `serve(handler, workers=2, head_timeout=0.2, …)`."""
    servers: list[Server] = []
    default_tls = OVER[protocol][0]

    def start(
        handler: HttpHandler | None = None,
        host: str = "127.0.0.1",
        tls: TlsConfig | None = default_tls,
        **config: Any,
    ) -> Server:
        config.setdefault("workers", 4)
        server = Server(handler or basic_handler(), host, 0, ServerConfig(**config), tls)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(grace=0)
    assert server_threads() == [], "stop() leaves no thread"


@pytest.fixture
def connect(protocol: str) -> Iterator[Connect]:
    """Open client connections: `connect(server)`; they are closed when the test ends."""
    tls, client = OVER[protocol]
    with contextlib.ExitStack() as stack:

        def open_client(server: Server, **options: Any) -> RawClient:
            chosen = client if (server.tls is None) == (tls is None) else RawClient
            return stack.enter_context(chosen(server.port, **options))

        yield open_client
