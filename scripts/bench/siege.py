"""All attacks at once next to ordinary clients; over 400 lines: each attack is a few of them.

None of the ordinary requests may fail.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from .clients.load import Client, ClientError
from .common import BenchError, percentile
from .servers.server import HOST, Server, rss
from .siege_http2 import KEY, closed_windows, endless_blocks, rapid_resets

MAX_CONNECTIONS = 400
ORDINARY = 6  # clients that ask and wait for the answer
PACE = 0.02  # s between two steps of an attacker: the attacks share two cores with the server
SEQUENCES = 8  # of the server
LONG = 280  # times a text of six tokens
WARM_UP = 10.0  # s before memory, descriptors and threads are counted
MIB = 2**20


def siege(server: Server, seconds: float) -> dict[str, Any]:
    """Attack for `seconds`; one row of what was seen.

    Raises BenchError if an ordinary request failed, or an attack got what it must not get.
    """
    _warm_up(server.port)
    end = time.monotonic() + seconds
    latencies: list[float] = []
    failures: list[str] = []
    counts: Counter[str] = Counter()
    ordinary = [
        threading.Thread(target=_ordinary, args=(server.port, n, end, latencies, failures))
        for n in range(ORDINARY)
    ]
    attackers = [
        threading.Thread(
            target=_attack, args=(attack, server.port, end, counts, failures), name=name
        )
        for name, attack in ATTACKS.items()
    ]
    before = _held(server.pid)
    for thread in (*ordinary, *attackers):
        thread.start()
    with tqdm(total=round(seconds), desc="siege", unit="s", disable=None) as progress:
        while any(thread.is_alive() for thread in ordinary):
            time.sleep(1)
            progress.update(1)
    for thread in (*ordinary, *attackers):
        thread.join()
    after = _settled(server, before)
    if failures:
        shown = "; ".join(failures[:5])
        raise BenchError(f"{len(failures)} failures: {shown}\n{server.log(40)}")
    missing = [name for name in ATTACKS if not counts[name]]
    if missing:
        raise BenchError(f"these attacks never ran: {', '.join(missing)}")
    return {
        "ordinary requests": len(latencies),
        "p50 ms": percentile(latencies, 50) * 1e3,
        "p99 ms": percentile(latencies, 99) * 1e3,
        "attacks": counts.total(),
        "RSS growth MiB": (after["rss"] - before["rss"]) / MIB,
        "descriptors": after["fds"] - before["fds"],
        "threads": after["threads"] - before["threads"],
    }


def _warm_up(port: int) -> None:
    """Let the server take what it takes on demand: pools, both compilers of constraints, the cache.

    The pages of llama.cpp's cache and of its scores are resident after their first use.
    """
    readers = [threading.Thread(target=_fill_cache, args=(port, n)) for n in range(SEQUENCES)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    end = time.monotonic() + WARM_UP
    counts: Counter[str] = Counter()
    threads = [
        threading.Thread(target=_attack, args=(hostile_schemas, port, end, counts, []))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    _ordinary(port, 0, end, [], [])
    for thread in threads:
        thread.join()


def _fill_cache(port: int, number: int) -> None:
    """A prompt that nearly fills a sequence's part of the cache."""
    body = {"prompt": f"{number} " + "Once upon a time, " * LONG, "max_tokens": 1}
    with Client(HOST, port, timeout=60) as client:
        answer = client.exchange(_request("POST", "/generate", body))
    if answer.status != 200:
        raise BenchError(f"a prompt that fills the cache: {answer.status} {answer.body[:300]!r}")


def _held(pid: int) -> dict[str, int]:
    """What a process holds: resident bytes, descriptors, threads. Linux only."""
    return {
        "rss": rss(pid),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


def _settled(server: Server, before: dict[str, int], patience: float = 90.0) -> dict[str, int]:
    """What it holds once the attackers' connections are gone, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (after := _held(server.pid))["fds"] > before["fds"] and time.monotonic() < deadline:
        time.sleep(0.5)
    return after


def _request(method: str, path: str, body: object = None, *, key: str = KEY) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n"
    if data:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return f"{head}\r\n".encode() + data


_STORY = {"prompt": "Once upon a time", "max_tokens": 8, "ignore_eos": True, "temperature": 0}
_CHAT = {"messages": [{"role": "user", "content": "A story, please."}], "max_tokens": 8}
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
_HELD = {
    **_CHAT,
    "max_tokens": 40,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": _SCHEMA},
    },
}
_ASKS: tuple[tuple[str, str, object], ...] = (
    ("GET", "/health", None),
    ("GET", "/v1/models", None),
    ("POST", "/generate", _STORY),
    ("POST", "/generate_stream", _STORY),
    ("POST", "/encode", {"text": "Hello world " * 50}),
    ("POST", "/v1/chat/completions", _CHAT),
    ("POST", "/v1/chat/completions", _HELD),
)


def _ordinary(
    port: int, number: int, end: float, latencies: list[float], failures: list[str]
) -> None:
    dice = random.Random(number)
    expected: dict[bytes, bytes] = {}
    with Client(HOST, port, timeout=60) as client:
        while time.monotonic() < end:
            method, path, body = dice.choice(_ASKS)
            began = time.monotonic()
            try:
                answer = client.exchange(_request(method, path, body))
            except (OSError, ClientError) as error:
                failures.append(f"{method} {path}: {type(error).__name__}: {error}")
                return
            latencies.append(time.monotonic() - began)
            if answer.status != 200:
                failures.append(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
            elif path == "/generate":  # greedy: the same text each time
                text = answer.json()["data"]["text"].encode()
                if expected.setdefault(b"story", text) != text:
                    failures.append(f"{method} {path}: {text!r} instead of {expected[b'story']!r}")
            time.sleep(dice.random() * 0.1)


# Attackers


def _attack(
    attack: Callable[[int, random.Random, float], None],
    port: int,
    end: float,
    counts: Counter[str],
    failures: list[str],
) -> None:
    name = threading.current_thread().name
    dice = random.Random(name)
    while time.monotonic() < end:
        try:
            attack(port, dice, end)
        except BenchError as error:
            failures.append(f"{name}: {error}")
        except (OSError, ClientError):
            pass  # the server may well refuse, close or reset
        counts[name] += 1
        time.sleep(PACE)


def _connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), 10)


def _reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _linger(connections: list[socket.socket], until: float) -> None:
    """Wait until the server has closed all of them, or until then."""
    poller = select.poll()
    for connection in connections:
        poller.register(connection, select.POLLIN)
    open_ = {connection.fileno(): connection for connection in connections}
    while open_ and (left := until - time.monotonic()) > 0:
        for number, _ in poller.poll(min(left, 1.0) * 1e3):
            with contextlib.suppress(OSError):
                if open_[number].recv(65536):
                    continue
            poller.unregister(number)
            open_.pop(number).close()
    for connection in open_.values():
        connection.close()


def keyless_bodies(port: int, dice: random.Random, end: float) -> None:
    """48 clients without a key, each with most of a large body."""
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {16 * MIB}\r\n\r\n".encode()
    connections = []
    for _ in range(48):
        connection = _connect(port)
        connections.append(connection)
        with contextlib.suppress(OSError):
            connection.settimeout(0.2)
            connection.sendall(head + bytes(15 * MIB))
    _linger(connections, min(end, time.monotonic() + 5))


def keyless_expect(port: int, dice: random.Random, end: float) -> None:
    """Without a key no 100 may come."""
    with _connect(port) as connection:
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        if connection.recv(1000).startswith(b"HTTP/1.1 100"):
            raise BenchError("100 Continue without a key")


def dripping_bodies(port: int, dice: random.Random, end: float) -> None:
    """Bodies, with a key, of which a byte comes each second."""
    head = _request("POST", "/generate", _STORY).replace(b"Content-Length: ", b"Content-Length: 9")
    connections = [_connect(port) for _ in range(16)]
    try:
        for connection in connections:
            connection.sendall(head)
        stop = min(end, time.monotonic() + 40)
        while time.monotonic() < stop:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"x")
            time.sleep(1)
    finally:
        for connection in connections:
            connection.close()


def idle_connections(port: int, dice: random.Random, end: float) -> None:
    """More connections than the table holds, all silent."""
    connections = [_connect(port) for _ in range(MAX_CONNECTIONS + 20)]
    _linger(connections, min(end, time.monotonic() + dice.random() * 10))


def slow_heads(port: int, dice: random.Random, end: float) -> None:
    """Heads of which a byte comes each half second."""
    connections = [_connect(port) for _ in range(50)]
    try:
        head = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"z" * 60
        for at in range(len(head)):
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(head[at : at + 1])
            if time.monotonic() > end:
                break
            time.sleep(0.5)
    finally:
        for connection in connections:
            connection.close()


def non_readers(port: int, dice: random.Random, end: float) -> None:
    """Streams and many pipelined requests whose answers are never read."""
    connections = [_connect(port) for _ in range(8)]
    for connection in connections:
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            connection.sendall(_request("GET", "/openapi.json") * 2000)
    _linger_unread(connections, min(end, time.monotonic() + 20))


def _linger_unread(connections: list[socket.socket], until: float) -> None:
    time.sleep(max(0.0, until - time.monotonic()))
    for connection in connections:
        _reset(connection)


def leavers(port: int, dice: random.Random, end: float) -> None:
    """Clients that reset their connection in any state of a request."""
    whole = _request("POST", "/generate_stream", {**_STORY, "max_tokens": 100})
    for _ in range(10):
        connection = _connect(port)
        cut = dice.choice([0, 10, len(whole) // 2, len(whole) - 1, len(whole)])
        connection.sendall(whole[:cut])
        if cut == len(whole) and dice.random() < 0.7:
            connection.recv(200)
        _reset(connection)


def tiny_chunks(port: int, dice: random.Random, end: float) -> None:
    """A body in chunks of one byte."""
    with _connect(port) as connection:
        connection.sendall(
            f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
            + b"1\r\nx\r\n" * 20_000
        )
        connection.recv(1000)


def bombs(port: int, dice: random.Random, end: float) -> None:
    """gzip bodies that expand a thousandfold, cut ones and broken ones."""
    packed = gzip.compress(bytes(64 * MIB))
    for data in (packed, packed[: len(packed) // 2], b"\x1f\x8b" + dice.randbytes(100)):
        with _connect(port) as connection:
            head = (
                f"POST /encode HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
                f"Content-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            connection.sendall(head.encode() + data)
            answer = connection.recv(1000)
            if answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5")):
                raise BenchError(f"a gzip bomb got {answer[:300]!r}")


_NONSENSE = (
    b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET " + b"/" * 100_000,
    b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
    b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
)


def nonsense(port: int, dice: random.Random, end: float) -> None:
    """Bytes that are no request."""
    with _connect(port) as connection:
        data = bytearray(dice.choice(_NONSENSE))
        if dice.random() < 0.5:
            data[dice.randrange(len(data))] = dice.randrange(256)
        connection.sendall(bytes(data))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def hostile_schemas(port: int, dice: random.Random, end: float) -> None:
    """Constraints that crash, fill or hold a compiler that is not guarded."""
    low = -(2**63) + dice.randrange(3)
    schema = dice.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low + 1},
            {"type": "integer", "minimum": -1e30, "maximum": -1e29},
            {"allOf": [{"pattern": f"(a|b)*a{{{dice.randrange(20, 60)}}}"} for _ in range(8)]},
            {"type": "string", "pattern": "(" * 200 + ")" * 200},
            {"type": "string", "minLength": dice.randrange(10**6), "maxLength": 2**31 - 1},
        ]
    )
    body = {
        **_CHAT,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    with Client(HOST, port, timeout=30) as client:
        status = client.exchange(_request("POST", "/v1/chat/completions", body)).status
        if status not in (200, 400, 429, 503):
            raise BenchError(f"{schema} got {status}")


def wrong_keys(port: int, dice: random.Random, end: float) -> None:
    """Guesses at the key."""
    with Client(HOST, port, timeout=30) as client:
        for _ in range(20):
            answer = client.exchange(_request("POST", "/generate", _STORY, key=str(dice.random())))
            if answer.status not in (401, 429):
                raise BenchError(f"a wrong key got {answer.status}")


ATTACKS = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        keyless_bodies, keyless_expect, dripping_bodies, idle_connections, slow_heads, non_readers,
        leavers, tiny_chunks, bombs, nonsense, hostile_schemas, wrong_keys, rapid_resets,
        endless_blocks, closed_windows,
    )
}  # fmt: skip
