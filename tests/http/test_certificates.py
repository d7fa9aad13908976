"""Certificates: by host name, of clients, and new ones while the server runs."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from cllm.http import BodyStream, HttpResponse, HttpServerError, Server, TlsConfig
from cllm.http import certificates as certificates_module
from cllm.http.certificates import host_names
from tests.http.http_wire import (
    CERTIFICATES,
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


@pytest.mark.parametrize(
    ("cert", "key", "what"),
    [
        ("missing.pem", "localhost.key", "missing.pem: No such file"),
        ("localhost.pem", "missing.key", "missing.key: No such file"),
        ("localhost.pem", "encrypted.key", "the key is encrypted"),
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
