"""A client that shows every byte, and handlers that a test controls."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cllm.http import HttpHandler, HttpRequest, HttpResponse, Server, TlsConfig

PATIENCE = 30.0  # s; every wait in these tests ends after this, and then fails


@dataclass
class Reply:
    """A response as it came."""

    status: int
    headers: dict[str, str]  # names in lower case
    head: bytes
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """A TCP connection; what is sent is exactly what the test says."""

    def __init__(
        self, port: int, host: str = "127.0.0.1", receive_buffer: int = 0, preamble: bytes = b""
    ) -> None:
        """preamble: is sent before TLS begins."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect((host, port))
        sock.sendall(preamble)
        self.socket = self.secured(sock)
        self.buffer = b""

    def secured(self, sock: socket.socket) -> socket.socket:
        return sock

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(
        self,
        method: str = "GET",
        path: str = "/",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        version: str = "HTTP/1.1",
    ) -> Reply:
        """Send one request and read its response."""
        self.send(encode(method, path, body, headers, version))
        return self.reply(method)

    def get(self, path: str = "/", **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def reply(self, method: str = "GET") -> Reply:
        """Read one response."""
        reply = self.reply_head()
        if method == "HEAD" or reply.status in (204, 304) or reply.status < 200:
            return reply
        if reply.headers.get("transfer-encoding") == "chunked":
            while chunk := self.chunk():
                reply.chunks.append(chunk)
            reply.body = b"".join(reply.chunks)
        elif "content-length" in reply.headers:
            reply.body = self.exactly(int(reply.headers["content-length"]))
        else:
            reply.body = self.rest()
        return reply

    def reply_head(self) -> Reply:
        head = self.until(b"\r\n\r\n")
        lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        headers = dict(line.split(": ", 1) for line in lines[1:])
        return Reply(int(status), {n.lower(): v for n, v in headers.items()}, head)

    def chunk(self) -> bytes:
        """One chunk of a chunked body; b"" is the last."""
        size = int(self.until(b"\r\n")[:-2], 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            self._more()
        at = self.buffer.index(end) + len(end)
        data, self.buffer = self.buffer[:at], self.buffer[at:]
        return data

    def exactly(self, size: int) -> bytes:
        parts = [self.buffer]
        missing = size - len(self.buffer)
        while missing > 0:
            data = self.receive(min(missing, 1 << 20))
            if not data:
                raise EOFError(f"the server ended; {missing} of {size} bytes are missing")
            parts.append(data)
            missing -= len(data)
        whole = b"".join(parts)
        self.buffer = whole[size:]
        return whole[:size]

    def rest(self) -> bytes:
        """Everything until the server ends the connection."""
        parts = [self.buffer]
        self.buffer = b""
        while data := self.receive(1 << 16):
            parts.append(data)
        return b"".join(parts)

    def receive(self, size: int) -> bytes:
        return self.socket.recv(size)

    def wait_begun(self) -> None:
        """Wait for the first byte of a response."""
        self.buffer += self.receive(1)

    def ended(self) -> bool:
        """The server ended the connection, without another byte; waits for it."""
        try:
            return self.rest() == b""
        except ConnectionResetError:
            return True

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> None:
        data = self.receive(1 << 16)
        if not data:
            raise EOFError(f"the server ended after {self.buffer!r}")
        self.buffer += data


class TlsClient(RawClient):
    """The same over TLS."""

    def secured(self, sock: socket.socket) -> socket.socket:
        return client_context().wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        )

    def receive(self, size: int) -> bytes:
        try:
            return super().receive(size)
        except ssl.SSLEOFError as error:  # an end without close_notify
            raise ConnectionResetError from error

    def half_close(self) -> None:
        # Not SSLSocket's own, which goes on without TLS.
        socket.socket.shutdown(self.socket, socket.SHUT_WR)


CERTIFICATES = Path(__file__).parent / "certificates"  # made by make.sh there


def certificate(name: str) -> tuple[str, str]:
    """Files of a certificate and its key."""
    return str(CERTIFICATES / f"{name}.pem"), str(CERTIFICATES / f"{name}.key")


def client_context() -> ssl.SSLContext:
    """A client that trusts the test's certificates."""
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "server-ca.pem"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does by default since 3.13
    return context


def tls_connection(port: int, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    return context.wrap_socket(sock, server_hostname=name)


def get_over(sock: ssl.SSLSocket, path: str = "/health") -> bytes:
    sock.sendall(encode(path=path, headers={"Connection": "close"}))
    return b"".join(iter(lambda: sock.recv(65536), b""))


# What a test can run over: the server's TLS, and the client. A module whose tests are about
# behavior, not about bytes, names those it runs over in `PROTOCOLS`.
TRANSPORTS: dict[str, tuple[TlsConfig | None, type[RawClient]]] = {
    "http/1.1": (None, RawClient),
    "https/1.1": (TlsConfig((certificate("localhost"),)), TlsClient),
}
HTTP_1 = ("http/1.1", "https/1.1")
HTTP_2 = ("http/2", "https/2")
any_version = pytest.mark.any_version  # it runs over all four


def encode(
    method: str = "GET",
    path: str = "/",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} {version}", "Host: test"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def turned_away(connect: Connect, server: Server, preamble: bytes = b"") -> bool:
    """The server ends a new connection without a response, perhaps in its handshake."""
    try:
        client = connect(server, preamble=preamble)
        client.send(encode())
        return client.ended()
    except TimeoutError:
        return False
    except (OSError, EOFError):
        return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """For what has no event to wait on: another thread's counters, the kernel's queues."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"in {PATIENCE:g} s it did not come about that {what}"
        time.sleep(0.002)


_bystanders: set[threading.Thread] = set()


def ignore_running_threads() -> None:
    """Threads of servers that other tests share are not this test's."""
    _bystanders.clear()
    _bystanders.update(threading.enumerate())


def server_threads() -> list[str]:
    """The names of the threads that cLLM started in this test and that still run."""
    alive = (thread for thread in threading.enumerate() if thread not in _bystanders)
    return [thread.name for thread in alive if thread.name.startswith("cllm-")]


def basic_handler() -> HttpHandler:
    """What most tests need."""
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse.text("root"))
    handler.get("/health", lambda request: HttpResponse.json({"status": "healthy"}))
    handler.post("/echo", lambda request: HttpResponse.bytes(request.body))
    handler.get("/path/{name}", lambda request: request.path_params["name"])
    return handler


class Gate:
    """A handler that holds its worker until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, request: HttpRequest) -> str:
        self.entered.release()
        # Longer than anybody waits for a reply, so that giving up here rescues no failing test.
        assert self.opened.wait(3 * PATIENCE)
        return "through"

    def wait_entered(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.entered.acquire(timeout=PATIENCE)


Serve = Callable[..., Server]
Connect = Callable[..., RawClient]
