"""The package `h2` as the client, which checks each frame against the RFC; and arbitrary frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cllm.http import (
    BodyStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    IterableStream,
    Server,
    ServerConfig,
)
from tests.http.http2.http2_wire import (
    GOAWAY,
    INTERNAL_ERROR,
    PING,
    RST_STREAM,
    Frame,
    Http2Client,
    frame,
    request_fields,
)
from tests.http.http_wire import RawClient


@pytest.fixture(scope="module")
def echo() -> Iterator[Server]:
    handler = HttpHandler()

    def answer(request: HttpRequest) -> HttpResponse:
        fields = [(n, v) for n, v in request.headers.items() if n.startswith("x-")]
        return HttpResponse(200, fields, request.body)

    def streamed(request: HttpRequest) -> BodyStream:
        size = int(request.query["size"])
        return IterableStream(
            request.body[at : at + size] for at in range(0, len(request.body), size)
        )

    handler.post("/", answer)
    handler.post("/streamed", lambda request: HttpResponse.stream(streamed(request)))
    with Server(handler, port=0, config=ServerConfig(workers=2, access_log=False)) as server:
        yield server


VALUES = st.text("abc ,;=%\"'", max_size=20).map(str.strip)
REQUESTS = st.lists(
    st.tuples(
        st.binary(max_size=200) | st.integers(0, 100_000).map(bytes),
        st.lists(st.tuples(st.sampled_from(["x-a", "x-b"]), VALUES), max_size=3),
        st.none() | st.integers(1, 70_000),
    ),
    min_size=1,
    max_size=5,
)


@given(REQUESTS, st.integers(1000, 100_000))
@hypothesis_settings(
    max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)
def test_another_client_gets_what_it_sent(echo: Server, requests: Any, window: int) -> None:
    config = h2.config.H2Configuration(header_encoding="utf-8")
    client = h2.connection.H2Connection(config)
    with RawClient(echo.port) as raw:
        client.initiate_connection()
        client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        unsent: dict[int, bytes] = {}
        for body, fields, size in requests:
            path = "/" if size is None else f"/streamed?size={size}"
            stream = client.get_next_available_stream_id()
            client.send_headers(stream, [*request_fields("POST", path), *fields])
            unsent[stream] = body
        bodies = dict.fromkeys(unsent, b"")
        heads: dict[int, list[Any]] = {}
        open_ones = set(unsent)
        while open_ones:
            for stream in list(unsent):
                rest = unsent[stream]
                while stream in unsent:
                    room = min(client.local_flow_control_window(stream), 16384)
                    ended = len(rest) <= room
                    if not room and not ended:
                        break
                    client.send_data(stream, rest[:room], end_stream=ended)
                    unsent[stream] = rest = rest[room:]
                    if ended:
                        del unsent[stream]
            raw.send(client.data_to_send())
            for event in client.receive_data(raw.receive(1 << 16)):
                if isinstance(event, h2.events.ResponseReceived):
                    heads[event.stream_id] = event.headers
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    open_ones.discard(event.stream_id)
                assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)
        for (body, fields, size), stream in zip(requests, sorted(bodies), strict=True):
            assert bodies[stream] == body
            head = heads[stream]
            assert head[0] == (":status", "200")
            if size is None:
                assert ("content-length", str(len(body))) in head
                assert [pair for pair in head if pair[0] in ("x-a", "x-b")] == fields


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 9))
@hypothesis_settings(max_examples=60, deadline=None)
def test_no_bytes_break_the_server(echo: Server, payloads: list[bytes], kind: int) -> None:
    """Frames of any type with any payload: an error of the protocol, and never a failure."""
    with Http2Client(echo.port) as client:
        client.send(client.headers(1, request_fields("POST"), ended=False))
        client.send(b"".join(frame(kind, n * 7 % 64, n % 3, p) for n, p in enumerate(payloads)))
        client.send(frame(PING, 0, 0, b"the-end!"))
        try:
            while True:
                found: Frame = client.frame()
                if found.kind == GOAWAY or found.payload == b"the-end!":
                    break
        except (EOFError, ConnectionResetError):
            pass
        assert all(f.code != INTERNAL_ERROR for f in client.seen if f.kind in (GOAWAY, RST_STREAM))
    assert echo.is_running
