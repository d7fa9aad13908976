"""Fixtures: connections of HTTP/2 to servers of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cllm.http import Server
from cllm.http.http2.http2 import Http2
from tests.http.http2.http2_wire import Http2Client

Http2Connect = Callable[..., Http2Client]


@pytest.fixture
def http2() -> Iterator[Http2Connect]:
    """Open connections: `http2(server)`; they are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_client(server: Server, **options: Any) -> Http2Client:
            return stack.enter_context(Http2Client(server.port, **options))

        yield open_client


def protocol_of(server: Server) -> Http2:
    """Of its only connection."""
    (connection,) = server._connections.values()
    protocol = connection._protocol
    assert isinstance(protocol, Http2)
    return protocol
