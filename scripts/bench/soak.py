"""A long mixed load: every endpoint, clients that disconnect, malformed requests."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from .clients.load import Client, ClientError, request_bytes
from .common import BenchError
from .servers.server import HOST, Server

CLIENTS = 8
_GENERATE = {"prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": True}


def soak_server(server: Server, requests: int) -> list[dict[str, Any]]:
    """Send `requests` mixed requests; one row of resident memory for each tenth."""
    rows = [{"requests": 0, "RSS MiB": server.rss() / 2**20}]
    with tqdm(total=requests, desc="soak", unit="req", disable=None) as progress:
        for tenth in range(1, 11):
            share = requests // 10
            _storm(server.port, share, seed=tenth, done=progress.update)
            rows.append({"requests": tenth * share, "RSS MiB": server.rss() / 2**20})
    return rows


def _storm(port: int, requests: int, seed: int, done: Callable[[int], object]) -> None:
    """Share the requests among `CLIENTS` threads; raise the first failure."""
    failures: list[Exception] = []
    counting = threading.Lock()

    def client(number: int) -> None:
        try:
            _client(port, requests // CLIENTS, random.Random(seed * CLIENTS + number), count)
        except Exception as error:  # a thread's failure is the soak's failure
            failures.append(error)

    def count(finished: int) -> None:
        with counting:
            done(finished)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(f"soak: {failures[0]}")


def _client(port: int, requests: int, dice: random.Random, done: Callable[[int], None]) -> None:
    connection = Client(HOST, port)
    for number in range(1, requests + 1):
        roll = dice.random()
        if roll < 0.02:
            _expect(200, connection, "POST", "/generate", _GENERATE)
        elif roll < 0.03:
            _expect(200, connection, "POST", "/generate_stream", _GENERATE)
        elif roll < 0.08:
            _expect(200, connection, "POST", "/encode", {"text": f"text {dice.random()}"})
        elif roll < 0.10:
            _expect(400, connection, "POST", "/generate", {"prompt": 5})
        elif roll < 0.12:
            _expect(404, connection, "GET", f"/nowhere/{dice.randrange(10**9)}")
        elif roll < 0.13:
            _vanish(port)
        elif roll < 0.14:
            _nonsense(port)
        elif roll < 0.16:
            connection.close()
            connection = Client(HOST, port)
            _expect(200, connection, "GET", "/health")
        elif roll < 0.17:
            _expect(200, connection, "GET", "/metrics")
        else:
            _expect(200, connection, "GET", "/health")
        if number % 100 == 0:
            done(100)
    connection.close()


def _expect(status: int, client: Client, method: str, path: str, body: object = None) -> None:
    answer = client.exchange(request_bytes(method, path, body))
    if answer.status != status:
        raise ClientError(f"{method} {path} gave {answer.status}: {answer.body[:400]!r}")


def _vanish(port: int) -> None:
    """Ask for a stream, and close before it ends."""
    with socket.create_connection((HOST, port), 60) as connection:
        connection.sendall(request_bytes("POST", "/generate_stream", _GENERATE))
        connection.recv(100)


def _nonsense(port: int) -> None:
    """A malformed request is answered with 400 and a close."""
    with socket.create_connection((HOST, port), 60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost : bench\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
        if not answer.startswith(b"HTTP/1.1 400 "):
            raise ClientError(f"a malformed request was answered with {answer[:200]!r}")
