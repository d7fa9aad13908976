"""What the tests of the API share: a live server, its events, and a way to hold the engine."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from cllm.api import ApiSettings, Service, create_handler
from cllm.engine import Engine, SamplingParams
from cllm.http import Server, ServerConfig

PATIENCE = 60.0  # seconds that any single wait in these tests may take before it fails


@dataclass
class Live:
    """A running server and what is behind it."""

    server: Server
    service: Service
    session: requests.Session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def engine(self) -> Engine:
        return self.service.engine

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.session.get(self.url + path, timeout=PATIENCE, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> requests.Response:
        if isinstance(body, bytes):
            more["data"] = body
        else:
            more["json"] = body
        return self.session.post(self.url + path, timeout=PATIENCE, **more)

    def ask(self, path: str, **fields: Any) -> Any:
        """POST, expect success, give `data`."""
        response = self.post(path, fields)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["success"] is True
        return answer["data"]

    def refused(self, path: str, body: Any, status: int = 400) -> str:
        """POST, expect the failure envelope with this status, give `error`."""
        response = self.post(path, body)
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"].startswith("application/json")
        answer = response.json()
        assert answer["success"] is False
        assert isinstance(answer["error"], str)
        return answer["error"]

    def stream(self, prompt: str, **fields: Any) -> list[dict[str, Any]]:
        """Every event of a stream."""
        body = {"prompt": prompt, **fields}
        with self.post("/generate_stream", body, stream=True) as response:
            assert response.status_code == 200, response.text
            return list(events(response.iter_content(None)))


@contextmanager
def serving(
    engine: Engine | None, settings: ApiSettings | None = None, config: ServerConfig | None = None
) -> Iterator[Live]:
    """A server of its own on a free port; the engine stays the caller's."""
    service = Service(engine, settings)
    server = Server(create_handler(service), port=0, config=config or ServerConfig(grace=5.0))
    service.server_stats = server.stats
    server.start()
    try:
        with requests.Session() as session:
            yield Live(server, service, session)
    finally:
        server.stop()


def events(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Parse server-sent events strictly: one `data:` line, an empty line; pings are skipped."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        while b"\n\n" in rest:
            event, rest = rest.split(b"\n\n", 1)
            if event.startswith(b": "):
                continue
            assert event.startswith(b"data: "), event
            assert b"\n" not in event, event
            yield json.loads(event[6:].decode("utf-8"))
    assert rest == b"", "the stream ended within an event"


@contextmanager
def frozen(engine: Engine) -> Iterator[None]:
    """Hold the engine thread between two steps: what is submitted meanwhile stays queued."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert release.wait(PATIENCE)

    generation = engine.submit("hold", SamplingParams(max_tokens=1), on_update=hold)
    assert entered.wait(PATIENCE)
    try:
        yield
    finally:
        release.set()
        generation.result(PATIENCE)


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state that nothing announces; fails after PATIENCE."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"never happened: {what}"
        time.sleep(0.002)


def idle(engine: Engine) -> bool:
    """No slot is busy and nobody waits."""
    stats = engine.stats()
    return stats.slots_busy == 0 and stats.queue_depth == 0


def begin_post(
    live: Live, path: str, fields: dict[str, Any], *, source: str = "127.0.0.1", key: str = ""
) -> socket.socket:
    """A raw connection on which the request has been sent and nothing read.

    source: the client's address. key: its API key.
    """
    body = json.dumps(fields).encode()
    peer = socket.create_connection(
        ("127.0.0.1", live.server.port), timeout=PATIENCE, source_address=(source, 0)
    )
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    peer.sendall(head.encode() + b"\r\n" + body)
    return peer


def read_until(peer: socket.socket, mark: bytes) -> bytes:
    """Everything up to and including the mark (and what came with it)."""
    received = b""
    while mark not in received:
        more = peer.recv(65536)
        assert more, f"closed before {mark!r}: {received!r}"
        received += more
    return received
