"""TLS: handshakes that no thread waits for, records, ends; over 400 lines, with a record layer."""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cllm.http import BodyStream, HttpHandler, HttpResponse, TlsConfig
from cllm.http.certificates import Certificates
from cllm.http.tls import MAX_WRITE, RECORD, TlsTransport, join
from cllm.http.transport import WANT_READ, WANT_WRITE, Buffer
from cllm.http.workspace import RECEIVE_BUFFER
from tests.http.http_wire import (
    PATIENCE,
    RawClient,
    Serve,
    TlsClient,
    basic_handler,
    certificate,
    client_context,
    encode,
    get_over,
    tls_connection,
    wait_until,
)

LOCALHOST = TlsConfig((certificate("localhost"),))
LONG = 3600.0


# Handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_served(serve: Serve, version: ssl.TLSVersion) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with tls_connection(serve(tls=LOCALHOST).port, context) as sock:
        assert b"healthy" in get_over(sock)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_older_versions_are_refused(serve: Serve) -> None:
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = serve(tls=LOCALHOST)
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        tls_connection(server.port, context)


def test_alpn_chooses_http_1_1_and_ignores_what_is_unknown(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    for offered, chosen in ((["http/1.1"], "http/1.1"), (["spdy/3"], None), ([], None)):
        context = client_context()
        if offered:
            context.set_alpn_protocols(offered)
        with tls_connection(server.port, context) as sock:
            assert sock.selected_alpn_protocol() == chosen
            assert b"healthy" in get_over(sock)


def test_a_handshake_that_does_not_come_holds_no_worker_and_ends(serve: Serve) -> None:
    server = serve(tls=LOCALHOST, workers=1, head_timeout=0.3)
    hello = bytes.fromhex("1603010200")  # the header of a record that does not follow
    silent = [RawClient(server.port) for _ in range(8)]
    for client in silent[:4]:
        client.send(hello)
    with TlsClient(server.port) as other:
        assert other.get("/health").status == 200
    assert all(client.ended() for client in silent)
    assert server.stats().timeouts_total == 4, "those that had begun"


def test_a_handshake_byte_by_byte(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with RawClient(server.port) as wire:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                data = outgoing.read()
                for index in range(len(data)):
                    wire.send(data[index : index + 1])
                incoming.write(wire.receive(65536))
        tls.write(encode())
        wire.send(outgoing.read())
        answer = b""
        while b"root" not in answer:
            try:
                answer += tls.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(wire.receive(65536))


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_http_without_tls_gets_a_readable_400(serve: Serve, method: str) -> None:
    server = serve(tls=LOCALHOST)
    with RawClient(server.port) as client:
        reply = client.request(method, "/echo", b"x" * 1000)
        assert reply.status == 400
        assert "https://" in reply.json()["error"]
        client.half_close()
        assert client.ended()


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x00\x05hello", b"\0" * 100, b"\x80\x2e\1\0\2"],
    ids=["no hello", "zeros", "SSL 2"],
)
def test_bytes_that_are_neither_cost_their_connection_only(
    serve: Serve, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(tls=LOCALHOST)
    with RawClient(server.port) as client:
        client.send(garbage)
        with contextlib.suppress(OSError):  # the server may have closed it already
            client.half_close()
            client.rest()
    wait_until(lambda: server.stats().connections_open == 0, "it is closed")
    with TlsClient(server.port) as other:
        assert other.get("/health").status == 200
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_client_that_resets_in_its_handshake_leaves_nothing(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    for sent in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"):
        client = RawClient(server.port)
        client.send(sent)
        client.reset()
    wait_until(lambda: server.stats().accepted_total == 3, "all have come")
    wait_until(lambda: server.stats().connections_open == 0, "all are gone")


def test_a_stop_ends_handshakes_at_once(serve: Serve) -> None:
    server = serve(tls=LOCALHOST, head_timeout=LONG, grace=LONG)
    clients = [RawClient(server.port) for _ in range(2)]
    clients[0].send(b"\x16\x03\x01")
    wait_until(lambda: server.stats().parked == 2, "both wait")
    server.stop()
    assert all(client.ended() for client in clients)


@pytest.mark.parametrize("certificates", [("localhost",), ("example", "localhost")])
def test_sessions_are_resumed_also_after_a_reload(
    serve: Serve, certificates: tuple[str, ...]
) -> None:
    server = serve(tls=TlsConfig(tuple(certificate(name) for name in certificates)))
    context = client_context()

    def session(earlier: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        with context.wrap_socket(sock, server_hostname="localhost", session=earlier) as tls:
            get_over(tls)
            return tls.session, bool(tls.session_reused)

    first, reused = session(None)
    assert not reused
    second, reused = session(first)
    assert reused
    assert server.reload_certificates()
    assert session(second)[1]


# Records


@pytest.fixture
def pair() -> Iterator[tuple[TlsTransport, ssl.SSLSocket]]:
    """A server's transport after its handshake, and its client."""
    left, right = socket.socketpair()
    left.setblocking(False)
    transport = TlsTransport(Certificates(LOCALHOST, ["http/1.1"]).wrap(left))
    found: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: found.append(
            client_context().wrap_socket(right, server_hostname="localhost")
        )
    )
    thread.start()
    while transport.handshake():
        pass
    thread.join(PATIENCE)
    (client,) = found
    client.settimeout(PATIENCE)
    yield transport, client
    client.close()
    transport.close()


def test_a_read_leaves_nothing_that_the_poller_does_not_see(
    pair: tuple[TlsTransport, ssl.SSLSocket],
) -> None:
    transport, client = pair
    data = os.urandom(5 * RECORD + 17)
    client.sendall(data)
    buffer = memoryview(bytearray(RECEIVE_BUFFER))
    got = b""
    while len(got) < len(data):
        count = transport.read(buffer)
        if count != WANT_READ:
            got += buffer[:count]
            assert transport._tls.pending() == 0
    assert got == data
    assert transport.read(buffer) == WANT_READ


def test_a_blocked_write_is_repeated_with_its_bytes(
    pair: tuple[TlsTransport, ssl.SSLSocket],
) -> None:
    # Whatever the caller gives next. OpenSSL would send a mixture, or break the connection.
    transport, client = pair
    data = bytes(range(256)) * 4096
    pending: list[Buffer] = [data]
    taken = 0
    while (sent := transport.write(pending)) > 0:
        taken += sent
        pending = [memoryview(data)[taken:]]
    assert sent == WANT_WRITE
    received: list[bytes] = []
    expected = data + b"the end"

    def read() -> None:
        left = len(expected)
        while left:
            received.append(client.recv(65536))
            left -= len(received[-1])

    thread = threading.Thread(target=read)
    thread.start()
    rest = memoryview(expected)[taken:]
    shortest = rest[:1]  # fewer bytes than the blocked write had, which OpenSSL refuses
    while (sent := transport.write([shortest])) < 0:
        pass
    taken += sent
    while taken < len(expected):
        taken += max(transport.write([expected[taken : taken + 1000], expected[taken + 1000 :]]), 0)
    thread.join(PATIENCE)
    assert b"".join(received) == expected


def test_a_head_and_its_body_are_one_record(pair: tuple[TlsTransport, ssl.SSLSocket]) -> None:
    transport, client = pair
    assert transport.write([b"head", b"body", b"more"]) == 12
    assert client.recv(100) == b"headbodymore"


@pytest.mark.parametrize(
    "sizes", [[5], [5, 6], [MAX_WRITE], [MAX_WRITE + 1], [3, MAX_WRITE], [1] * 1000, [0, 7]]
)
def test_pieces_are_joined_up_to_a_limit(sizes: list[int]) -> None:
    buffers = [os.urandom(size) for size in sizes]
    joined = join(buffers, MAX_WRITE)
    assert bytes(joined) == b"".join(buffers)[:MAX_WRITE]


# Ends


def test_the_end_of_a_response_is_told_from_a_cut(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    with TlsClient(server.port) as client:
        reply = client.request(headers={"Connection": "close"})
        assert reply.body == b"root"
        assert client.receive(1) == b"", "close_notify, else the client raises"


@pytest.mark.parametrize("politely", [True, False])
def test_a_client_may_end_with_or_without_close_notify(serve: Serve, politely: bool) -> None:
    server = serve(tls=LOCALHOST, keep_alive_timeout=LONG)
    client = TlsClient(server.port)
    assert client.get().status == 200
    if politely:
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.unwrap()
    client.close()
    wait_until(lambda: server.stats().connections_open == 0, "it is closed")
    assert server.stats().clients_left_total == 0


def test_a_body_cut_by_the_clients_end_is_no_request(serve: Serve) -> None:
    bodies: list[bytes] = []
    handler = HttpHandler()
    handler.post("/", lambda request: bodies.append(request.body))
    server = serve(handler, tls=LOCALHOST)
    with TlsClient(server.port) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        client.half_close()
        client.rest()
    assert bodies == []


def test_an_idle_connection_is_closed_for_a_new_one_without_close_notify(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenSSL would read what has come, on the acceptor, as long as it has no content.
    monkeypatch.setattr("cllm.http.connection_room.MIN_IDLE", 0.0)
    server = serve(tls=LOCALHOST, max_connections=1, keep_alive_timeout=LONG)
    with TlsClient(server.port) as idle:
        assert idle.get().status == 200
        with TlsClient(server.port) as new:
            assert new.get().status == 200
        assert server.stats().reclaimed_total == 1
        assert isinstance(idle.socket, ssl.SSLSocket)
        with pytest.raises(ssl.SSLEOFError):
            idle.socket.recv(1)


def test_an_error_response_is_seen_in_spite_of_unread_bytes(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    with TlsClient(server.port) as client:
        client.send(b"NONSENSE\r\n\r\n" + b"x" * 100_000)
        assert client.reply().status == 400
        client.half_close()
        assert client.rest() == b""


def test_a_client_that_leaves_cancels_its_stream(serve: Serve) -> None:
    stream, left = BodyStream(), threading.Event()
    stream.on_cancel(lambda reason: left.set())
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    server = serve(handler, tls=LOCALHOST)
    client = TlsClient(server.port)
    client.send(encode(path="/stream"))
    assert client.reply_head().status == 200
    client.close()
    assert left.wait(PATIENCE)


@pytest.mark.parametrize("protocols", [["http/1.1"], []])
def test_http2_over_tls_is_chosen_by_alpn_only(serve: Serve, protocols: list[str]) -> None:
    """RFC 9113 section 3.2"""
    server = serve(tls=LOCALHOST)
    context = client_context()
    context.set_alpn_protocols(protocols)
    with tls_connection(server.port, context) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 505 ")


# Records without content


def expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1, with SHA-384."""
    info = size.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0\1"
    return hmac.digest(secret, info, "sha384")[:size]


def record(secret: bytes, number: int, kind: bytes, content: bytes) -> bytes:
    """One record of TLS_AES_256_GCM_SHA384; `number` counts since the secret is new."""
    head = b"\x17\3\3" + (len(content) + 17).to_bytes(2, "big")
    start = int.from_bytes(expand(secret, b"iv", 12), "big")
    nonce = (start ^ number).to_bytes(12, "big")
    return head + AESGCM(expand(secret, b"key", 32)).encrypt(nonce, content + kind, head)


def key_updates(secret: bytes, count: int, request: bytes = b"") -> bytes:
    """Records with a KeyUpdate each (RFC 8446 sections 4.6.3, 7.2), behind one of a request."""
    records = [record(secret, 0, b"\x17", request)] if request else []
    for index in range(count):
        first = len(records) if index == 0 else 0
        records.append(record(secret, first, b"\x16", b"\x18\0\0\1\0"))
        secret = expand(secret, b"traffic upd", 48)
    return b"".join(records)


@contextlib.contextmanager
def with_secret(port: int, keys: Path) -> Iterator[tuple[socket.socket, bytes]]:
    """A socket after the handshake, for records that the test makes with the secret."""
    context = client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.keylog_filename = str(keys)
    with tls_connection(port, context) as sock:
        assert sock.cipher()[0] == "TLS_AES_256_GCM_SHA384"  # type: ignore[index]
        lines = keys.read_text().splitlines()
        (secret,) = [line.split()[2] for line in lines if line.startswith("CLIENT_TRAFFIC_SECRET")]
        with socket.socket(fileno=os.dup(sock.fileno())) as raw:
            raw.settimeout(PATIENCE)
            yield raw, bytes.fromhex(secret)


@pytest.mark.parametrize(
    "request_before",
    [b"", encode(headers={"Connection": "close"}), b"NONSENSE\r\n\r\n"],
    ids=["at once", "behind the last request", "behind an error"],
)
def test_records_without_content_hold_no_worker(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_before: bytes
) -> None:
    """OpenSSL reads them all in one call: 0.3 s for these, and without end if more come."""
    monkeypatch.setattr("cllm.http.long_reads.LONGEST_READ", 0.01)
    # Another request is enough; a sweep would come later.
    monkeypatch.setattr("cllm.http.acceptor._sweep_interval", lambda config: LONG)
    server = serve(tls=LOCALHOST, workers=1)
    with with_secret(server.port, tmp_path / "keys") as (raw, secret):
        raw.sendall(key_updates(secret, 20_000, request_before))
        with tls_connection(server.port, client_context()) as other:
            assert b"healthy" in get_over(other)
        with pytest.raises(ConnectionError):
            while raw.recv(65536):  # the server's session tickets, a response, then the reset
                pass


def test_records_without_content_keep_no_idle_connection(serve: Serve, tmp_path: Path) -> None:
    server = serve(tls=LOCALHOST, keep_alive_timeout=0.4)
    with with_secret(server.port, tmp_path / "keys") as (raw, secret):
        records = key_updates(secret, 300, encode())
        size = 27  # of each KeyUpdate
        raw.sendall(records[: -300 * size])
        with pytest.raises(ConnectionError):
            for at in range(len(records) - 300 * size, len(records), size):
                raw.sendall(records[at : at + size])
                threading.Event().wait(0.1)
