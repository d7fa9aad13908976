"""Many clients send pipelines in random pieces, and each gets every response; by seed."""

from __future__ import annotations

import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cllm.http import BodyStream, DeferredResponse, HttpHandler, HttpRequest, HttpResponse
from cllm.http.workspace import RECEIVE_BUFFER
from tests.http.http2.translated import TranslatingClient
from tests.http.http_wire import HTTP_1, HTTP_2, Connect, RawClient, Serve, encode

PROTOCOLS = (*HTTP_1, *HTTP_2)

CLIENTS = 32
PARTS = [b"one ", b"two ", b"three"]
# Around what one read gives: a record of TLS, and the worker's buffer
SIZES = (0, 1, 100, 16 * 1024, RECEIVE_BUFFER - 200, RECEIVE_BUFFER, 2 * RECEIVE_BUFFER)
PIECES = (1, 2, 30, 5000, 16 * 1024, RECEIVE_BUFFER, 1 << 20)  # bytes of one send at most


class CuttingSocket:
    """Sends end at random bytes of frames; a read first sends what is left."""

    def __init__(self, socket: Any, random_: random.Random) -> None:
        self._socket, self._random, self._left = socket, random_, b""

    def sendall(self, data: bytes) -> None:
        data = self._left + data
        end = self._random.randrange(len(data) + 1)
        self._left = data[end:]
        self._socket.sendall(data[:end])

    def recv(self, most: int) -> bytes:
        left, self._left = self._left, b""
        self._socket.sendall(left)
        received: bytes = self._socket.recv(most)
        return received

    def close(self) -> None:
        self._socket.close()


def digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def random_handler(others: ThreadPoolExecutor) -> HttpHandler:
    handler = HttpHandler()
    handler.get("/fast", lambda request: "fast")
    handler.post("/digest", lambda request: HttpResponse(200, (), digest(request.body)))

    def slow(request: HttpRequest) -> str:
        time.sleep(0.002)  # a handler that blocks; bytes come meanwhile
        return "slow"

    def deferred(request: HttpRequest) -> DeferredResponse:
        answer = DeferredResponse()
        others.submit(answer.resolve, HttpResponse.text("deferred"))
        return answer

    def streamed(request: HttpRequest) -> HttpResponse:
        stream = BodyStream()

        def feed() -> None:
            for part in PARTS:
                stream.write(part)
            stream.close()

        others.submit(feed)
        return HttpResponse(200, (), stream)

    handler.get("/slow", slow)
    handler.get("/deferred", deferred)
    handler.get("/streamed", streamed)
    return handler


def random_request(random_: random.Random) -> tuple[bytes, bytes]:
    """Its bytes, and the body of its response."""
    path = random_.choice(("fast", "fast", "fast", "slow", "deferred", "streamed", "digest"))
    if path == "digest":
        body = random_.randbytes(random_.choice(SIZES) + random_.randrange(3))
        return encode("POST", "/digest", body), digest(body)
    return encode(path=f"/{path}"), b"".join(PARTS) if path == "streamed" else path.encode()


def talk(client: RawClient, random_: random.Random) -> None:
    if isinstance(client, TranslatingClient):
        client.frames.socket = CuttingSocket(client.frames.socket, random_)
    requests = [random_request(random_) for _ in range(random_.randrange(1, 40))]
    pipeline = b"".join(request for request, _ in requests)
    most = random_.choice(PIECES)
    if len(pipeline) > 1000 * most:
        most = len(pipeline) // 1000
    while pipeline:
        piece = random_.randrange(1, most + 1)
        client.send(pipeline[:piece])
        pipeline = pipeline[piece:]
        if random_.random() < 0.1:
            time.sleep(random_.random() * 0.005)  # so that the server parks the connection
    for number, (_, expected) in enumerate(requests):
        assert client.reply().body == expected, f"response {number} of {len(requests)}"


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_each_request_of_a_random_pipeline_is_answered(
    serve: Serve, connect: Connect, workers: int
) -> None:
    with ThreadPoolExecutor(2) as others, ThreadPoolExecutor(CLIENTS) as clients:
        server = serve(random_handler(others), workers=workers)
        talks = [
            clients.submit(talk, connect(server), random.Random(f"{workers} {number}"))
            for number in range(CLIENTS)
        ]
        for each in talks:
            each.result()
