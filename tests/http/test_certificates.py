"""Certificates: by host name, of clients, and new ones meanwhile; over 400 lines, a case each."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from cllm.http import BodyStream, HttpResponse, HttpServerError, Server, TlsConfig
from cllm.http import certificates as certificates_module
from cllm.http.certificates import Certificates, host_names
from tests.http.http_wire import (
    CERTIFICATES,
    PATIENCE,
    Serve,
    TlsClient,
    basic_handler,
    certificate,
    client_context,
    encode,
    get_over,
    tls_connection,
)

LONG = 3600.0


def names_of(sock: ssl.SSLSocket) -> set[str]:
    peer: Any = sock.getpeercert()
    return {value for kind, value in peer["subjectAltName"] if kind == "DNS"}


def test_a_client_gets_the_certificate_of_the_host_it_names(serve: Serve) -> None:
    server = serve(tls=TlsConfig((certificate("localhost"), certificate("example"))))
    names = {"localhost": "localhost", "a.example": "a.example", "x.b.example": "a.example"}
    for name, found in names.items():
        with tls_connection(server.port, client_context(), name) as sock:
            assert found in names_of(sock)
            assert b"healthy" in get_over(sock)
    for unknown in ("unknown.example", "y.x.b.example"):  # a wildcard stands for one label
        context = client_context()
        context.check_hostname = False
        with tls_connection(server.port, context, unknown) as sock:
            assert names_of(sock) == {"localhost"}, "the first is for all others"


def test_a_client_that_names_no_host_gets_the_first(serve: Serve) -> None:
    server = serve(tls=TlsConfig((certificate("localhost"), certificate("example"))))
    with tls_connection(server.port, client_context(), "127.0.0.1") as sock:
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
        with tls_connection(server.port, client_certificate(name), host) as sock:
            answer = get_over(sock)
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
    with tls_connection(server.port, client_context()) as sock:
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


def test_a_passing_failure_is_tried_again(
    serve: Serve,
    files: TlsConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing of the files changes when it has passed: too many were open."""
    monkeypatch.setattr(certificates_module, "LOOK_INTERVAL", 0.0)
    server = serve(tls=files)
    old = serial(server)
    real = certificates_module._readable

    def fails(path: str) -> str:
        raise HttpServerError(f"{path} cannot be read: Too many open files")

    monkeypatch.setattr(certificates_module, "_readable", fails)
    replace(files, "renewed")
    assert [serial(server) for _ in range(3)] == [old] * 3
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    monkeypatch.setattr(certificates_module, "_readable", real)
    assert serial(server) != old


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_another_owner_of_a_key_is_a_change(files: TlsConfig) -> None:
    certificates = Certificates(files, ["http/1.1"])
    versions = certificates._versions()
    os.chown(files.certificates[0][1], 12345, 12345)
    assert certificates._versions() != versions


def test_a_file_that_vanishes_while_it_is_read_leaves_the_old_certificate(
    serve: Serve, files: TlsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(tls=files)
    old = serial(server)
    read = certificates_module._readable

    def vanishing(file: str) -> str:
        text = read(file)
        os.remove(file)
        return text

    monkeypatch.setattr(certificates_module, "_readable", vanishing)
    assert not server.reload_certificates()
    assert serial(server) == old


# New authorities of client certificates


@pytest.fixture(params=["required", "optional"])
def authorities(request: pytest.FixtureRequest, tmp_path: Path, files: TlsConfig) -> TlsConfig:
    """With a copy of `client`'s authority, to be changed."""
    path = str(tmp_path / "client-ca.pem")
    shutil.copy(CERTIFICATES / "client-ca.pem", path)
    return TlsConfig((*files.certificates, certificate("example")), path, request.param)


def trust(config: TlsConfig, name: str) -> None:
    assert config.client_ca is not None
    shutil.copy(CERTIFICATES / name, config.client_ca + ".new")
    os.replace(config.client_ca + ".new", config.client_ca)


class Visitor:
    """A client that resumes its last session, as browsers do."""

    def __init__(self, name: str | None, version: ssl.TLSVersion, tickets: bool = True) -> None:
        self.context = client_certificate(name)
        self.context.minimum_version = self.context.maximum_version = version
        if not tickets:  # the server remembers the sessions of TLS 1.2 itself
            self.context.options |= ssl.OP_NO_TICKET
        self.session: ssl.SSLSession | None = None

    def visit(self, port: int, host: str = "localhost") -> str:
        """`full` or `resumed`, as the handshake was; `refused` if there was no answer."""
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
        try:
            with self.context.wrap_socket(
                raw, server_hostname=host, session=self.session
            ) as sock:  # fmt: skip
                assert b"healthy" in get_over(sock)
                self.session, resumed = sock.session, sock.session_reused
                sock.unwrap()  # OpenSSL may forget a session whose connection was cut
                return "resumed" if resumed else "full"
        except (ssl.SSLError, ConnectionError):
            return "refused"


VERSIONS = pytest.mark.parametrize(
    ("version", "tickets"),
    [
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_2, False),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
    ids=["TLS 1.2", "TLS 1.2 without tickets", "TLS 1.3"],
)


@VERSIONS
@pytest.mark.parametrize("by_itself", [True, False], ids=["by itself", "on request"])
@pytest.mark.parametrize("host", ["localhost", "a.example"])
def test_new_authorities_lock_out_the_clients_of_the_old_ones(
    serve: Serve, authorities: TlsConfig, version: ssl.TLSVersion, tickets: bool,
    by_itself: bool, host: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(certificates_module, "LOOK_INTERVAL", 0.0 if by_itself else LONG)
    server = serve(tls=authorities)
    old, new = Visitor("client", version, tickets), Visitor("stranger", version, tickets)
    assert [old.visit(server.port, host) for _ in range(2)] == ["full", "resumed"]
    assert new.visit(server.port, host) == "refused"
    trust(authorities, "other-ca.pem")
    if not by_itself:
        assert server.reload_certificates()
    assert old.visit(server.port, host) == "refused", "its session was of the old authority"
    assert [new.visit(server.port, host) for _ in range(2)] == ["full", "resumed"]
    trust(authorities, "client-ca.pem")
    if not by_itself:
        assert server.reload_certificates()
    assert new.visit(server.port, host) == "refused"
    assert old.visit(server.port, host) == "full", "the first sessions are not accepted again"


@VERSIONS
def test_new_authorities_leave_clients_without_a_certificate(
    serve: Serve, authorities: TlsConfig, version: ssl.TLSVersion, tickets: bool
) -> None:
    server = serve(tls=authorities)
    expected = ["refused"] * 2 if authorities.client_auth == "required" else ["full", "resumed"]
    client = Visitor(None, version, tickets)
    assert [client.visit(server.port) for _ in range(2)] == expected
    trust(authorities, "other-ca.pem")
    assert server.reload_certificates()
    assert [client.visit(server.port) for _ in range(2)] == expected


@VERSIONS
def test_sessions_of_client_certificates_outlast_new_certificates(
    serve: Serve, authorities: TlsConfig, version: ssl.TLSVersion, tickets: bool
) -> None:
    server = serve(tls=authorities)
    client = Visitor("client", version, tickets)
    assert client.visit(server.port) == "full"
    replace(authorities, "renewed")
    trust(authorities, "client-ca.pem")  # the same ones in a new file
    assert server.reload_certificates()
    assert client.visit(server.port) == "resumed"


@VERSIONS
@pytest.mark.parametrize("broken", ["make.sh", None])
def test_broken_new_authorities_leave_the_old_ones(
    serve: Serve, authorities: TlsConfig, version: ssl.TLSVersion, tickets: bool,
    broken: str | None, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server = serve(tls=authorities)
    old, new = Visitor("client", version, tickets), Visitor("stranger", version, tickets)
    assert old.visit(server.port) == "full"
    if broken is None:
        assert authorities.client_ca is not None
        os.remove(authorities.client_ca)
    else:
        trust(authorities, broken)
    assert not server.reload_certificates()
    (error,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "client-ca.pem" in error and "the old ones stay" in error
    assert old.visit(server.port) == "resumed"
    assert new.visit(server.port) == "refused"
    trust(authorities, "other-ca.pem")
    assert server.reload_certificates()
    assert old.visit(server.port) == "refused"
    assert new.visit(server.port) == "full"


def test_a_broken_certificate_keeps_new_authorities_out(
    serve: Serve, authorities: TlsConfig
) -> None:
    server = serve(tls=authorities)
    old, new = (Visitor(name, ssl.TLSVersion.TLSv1_3) for name in ("client", "stranger"))
    assert old.visit(server.port) == "full"
    trust(authorities, "other-ca.pem")
    shutil.copy(certificate("renewed")[0], authorities.certificates[0][0])  # its key is missing
    assert not server.reload_certificates()
    assert [old.visit(server.port), new.visit(server.port)] == ["resumed", "refused"]


def test_a_stream_outlasts_new_authorities(serve: Serve, authorities: TlsConfig) -> None:
    stream = BodyStream()
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(stream))
    server = serve(handler, tls=authorities)
    with tls_connection(server.port, client_certificate("client")) as sock:
        sock.sendall(encode(path="/stream"))
        stream.write(b"before")
        received = b""
        while b"before" not in received:
            received += sock.recv(65536)
        trust(authorities, "other-ca.pem")
        assert server.reload_certificates()
        assert Visitor("client", ssl.TLSVersion.TLSv1_3).visit(server.port) == "refused"
        stream.write(b"after")
        stream.close()
        while not received.endswith(b"0\r\n\r\n"):
            received += sock.recv(65536)
        assert b"after" in received


@pytest.mark.parametrize(
    ("cert", "key", "what"),
    [
        ("missing.pem", "localhost.key", "missing.pem: No such file"),
        ("localhost.pem", "missing.key", "missing.key: No such file"),
        ("localhost.pem", "encrypted.key", "the key is encrypted"),
        ("localhost.pem", "renewed.key", "belongs to another certificate"),
        ("localhost.key", "localhost.key", "is not PEM"),
        ("make.sh", "localhost.key", "is not PEM"),
        (os.devnull, "localhost.key", "is not PEM"),
        ("localhost.pem", os.devnull, "is not PEM"),
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
