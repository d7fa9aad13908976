"""TLS: handshakes that no thread waits for, records, ends, certificates by name and anew."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.http import BodyStream, HttpHandler, HttpResponse, HttpServerError, Server, TlsConfig
from cllm.http import certificates as certificates_module
from cllm.http.certificates import Certificates, host_names
from cllm.http.tls import MAX_WRITE, RECORD, TlsTransport, join
from cllm.http.transport import WANT_READ, WANT_WRITE, Buffer
from cllm.http.workspace import RECEIVE_BUFFER
from tests.http.http_wire import (
    CERTIFICATES,
    PATIENCE,
    RawClient,
    Serve,
    TlsClient,
    basic_handler,
    certificate,
    client_context,
    encode,
    wait_until,
)

LOCALHOST = TlsConfig((certificate("localhost"),))
LONG = 3600.0


def connected(port: int, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    return context.wrap_socket(sock, server_hostname=name)


def get(sock: ssl.SSLSocket, path: str = "/health") -> bytes:
    sock.sendall(encode(path=path, headers={"Connection": "close"}))
    return b"".join(iter(lambda: sock.recv(65536), b""))


def names_of(sock: ssl.SSLSocket) -> set[str]:
    peer: Any = sock.getpeercert()
    return {value for kind, value in peer["subjectAltName"] if kind == "DNS"}


# Handshakes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_served(serve: Serve, version: ssl.TLSVersion) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with connected(serve(tls=LOCALHOST).port, context) as sock:
        assert b"healthy" in get(sock)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_older_versions_are_refused(serve: Serve) -> None:
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = serve(tls=LOCALHOST)
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        connected(server.port, context)


def test_alpn_chooses_http_1_1_and_ignores_what_is_unknown(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    for offered, chosen in ((["http/1.1"], "http/1.1"), (["spdy/3"], None), ([], None)):
        context = client_context()
        if offered:
            context.set_alpn_protocols(offered)
        with connected(server.port, context) as sock:
            assert sock.selected_alpn_protocol() == chosen
            assert b"healthy" in get(sock)


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


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x00\x05hello", b"\0" * 100, b"\x80\x2e\1\0\2"])
def test_bytes_that_are_neither_cost_their_connection_only(
    serve: Serve, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(tls=LOCALHOST)
    with RawClient(server.port) as client:
        client.send(garbage)
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


def test_sessions_are_resumed_also_after_a_reload(serve: Serve) -> None:
    server = serve(tls=LOCALHOST)
    context = client_context()

    def session(earlier: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        with context.wrap_socket(sock, server_hostname="localhost", session=earlier) as tls:
            get(tls)
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


# Certificates


def test_a_client_gets_the_certificate_of_the_host_it_names(serve: Serve) -> None:
    server = serve(tls=TlsConfig((certificate("localhost"), certificate("example"))))
    names = {"localhost": "localhost", "a.example": "a.example", "x.b.example": "a.example"}
    for name, found in names.items():
        with connected(server.port, client_context(), name) as sock:
            assert found in names_of(sock)
            assert b"healthy" in get(sock)
    for unknown in ("unknown.example", "y.x.b.example"):  # a wildcard stands for one label
        context = client_context()
        context.check_hostname = False
        with connected(server.port, context, unknown) as sock:
            assert names_of(sock) == {"localhost"}, "the first is for all others"


def test_a_client_that_names_no_host_gets_the_first(serve: Serve) -> None:
    server = serve(tls=TlsConfig((certificate("localhost"), certificate("example"))))
    with connected(server.port, client_context(), "127.0.0.1") as sock:
        assert names_of(sock) == {"localhost"}


def test_the_names_of_a_certificate() -> None:
    def names(name: str) -> list[str]:
        pem = Path(certificate(name)[0]).read_text()
        return host_names(ssl.PEM_cert_to_DER_cert(pem))

    assert names("localhost") == ["localhost"]
    assert names("example") == ["a.example", "*.b.example"]
    assert names("client") == []


def test_a_malformed_certificate_has_no_names_and_no_other_error() -> None:
    der = ssl.PEM_cert_to_DER_cert(Path(certificate("example")[0]).read_text())
    for cut in range(len(der)):
        with pytest.raises(ValueError, match=r"."):
            host_names(der[:cut])
    for index in range(len(der)):
        for value in (0, 0x7F, 0x84, 0xFF):
            try:
                host_names(der[:index] + bytes([value]) + der[index + 1 :])
            except ValueError:
                continue


def client_certificate(name: str | None) -> ssl.SSLContext:
    context = client_context()
    if name is not None:
        context.load_cert_chain(*certificate(name))
    return context


@pytest.mark.parametrize(
    ("auth", "name", "served"),
    [
        ("required", "client", True),
        ("required", None, False),
        ("required", "stranger", False),
        ("optional", "client", True),
        ("optional", None, True),
        ("optional", "stranger", False),
    ],
)
@pytest.mark.parametrize("host", ["localhost", "a.example"])
def test_client_certificates(
    serve: Serve, auth: str, name: str | None, served: bool, host: str
) -> None:
    config = TlsConfig(
        (certificate("localhost"), certificate("example")),
        client_ca=str(CERTIFICATES / "client-ca.pem"),
        client_auth=auth,
    )
    server = serve(tls=config)
    try:
        with connected(server.port, client_certificate(name), host) as sock:
            answer = get(sock)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    assert (b"healthy" in answer) is served


@pytest.fixture
def files(tmp_path: Path) -> TlsConfig:
    """A copy of localhost's certificate, to be changed."""
    for source, name in zip(certificate("localhost"), ("cert.pem", "key.pem"), strict=True):
        shutil.copy(source, tmp_path / name)
    return TlsConfig(((str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")),))


def replace(config: TlsConfig, name: str) -> None:
    for source, target in zip(certificate(name), config.certificates[0], strict=True):
        shutil.copy(source, target + ".new")
        os.replace(target + ".new", target)


def serial(server: Server) -> str:
    with connected(server.port, client_context()) as sock:
        peer = sock.getpeercert()
        assert peer is not None
        return str(peer["serialNumber"])


@pytest.mark.parametrize("by_itself", [True, False])
def test_new_files_are_for_new_connections(
    serve: Serve, files: TlsConfig, by_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates_module, "LOOK_INTERVAL", 0.0 if by_itself else LONG)
    stream = BodyStream()
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    server = serve(handler, tls=files)
    with TlsClient(server.port) as client:
        client.send(encode(path="/stream"))
        client.reply_head()
        stream.write(b"before")
        assert client.chunk() == b"before"
        old = serial(server)
        replace(files, "renewed")
        if not by_itself:
            assert serial(server) == old
            assert server.reload_certificates()
        assert serial(server) != old
        stream.write(b"after")
        assert client.chunk() == b"after"


def test_a_broken_new_file_leaves_the_old_certificate(
    serve: Serve, files: TlsConfig, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(certificates_module, "LOOK_INTERVAL", 0.0)
    server = serve(tls=files)
    old = serial(server)
    cert, key = files.certificates[0]
    shutil.copy(certificate("renewed")[0], cert)  # its key is still missing
    assert [serial(server) for _ in range(3)] == [old] * 3
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1, "once for each change"
    assert cert in errors[0] and "another certificate" in errors[0]
    shutil.copy(certificate("renewed")[1], key)
    assert serial(server) != old


@pytest.mark.parametrize(
    ("cert", "key", "what"),
    [
        ("missing.pem", "localhost.key", "missing.pem: No such file"),
        ("localhost.pem", "missing.key", "missing.key: No such file"),
        ("localhost.pem", "renewed.key", "belongs to another certificate"),
        ("localhost.key", "localhost.key", "PEM"),
        ("make.sh", "localhost.key", "PEM"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_at_the_start(cert: str, key: str, what: str) -> None:
    config = TlsConfig(((str(CERTIFICATES / cert), str(CERTIFICATES / key)),))
    server = Server(basic_handler(), port=0, tls=config)
    with pytest.raises(HttpServerError, match=what):
        server.start()
    assert not server.is_running


def test_a_file_of_client_authorities_that_cannot_be_used_is_named() -> None:
    config = TlsConfig((certificate("localhost"),), client_ca=str(CERTIFICATES / "make.sh"))
    with pytest.raises(HttpServerError, match=r"client authorities .*make\.sh"):
        Server(basic_handler(), port=0, tls=config).start()


def test_a_configuration_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="certificates is empty"):
        TlsConfig(())
    with pytest.raises(ValueError, match="client_auth is 'perhaps'"):
        TlsConfig((certificate("localhost"),), client_auth="perhaps")
