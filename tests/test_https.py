"""The program over HTTPS: options, banner, certificates that are renewed, a self-signed one."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest

from cllm.http import TlsConfig
from cllm.option_table import SettingsError, load_settings
from cllm.wiring import tls_config
from tests.http.http_wire import certificate, client_context
from tests.test_main import WAIT, Child, refusal

CERT, KEY = certificate("localhost")
OPTIONS = ("--tls-cert", CERT, "--tls-key", KEY)


def config(*argv: str, **environ: str) -> TlsConfig | None:
    return tls_config(load_settings(argv, environ))


def health(port: int, context: ssl.SSLContext) -> tuple[str, dict[str, Any]]:
    """(the certificate's serial number, the response)."""
    connection = http.client.HTTPSConnection("localhost", port, timeout=WAIT, context=context)
    try:
        connection.request("GET", "/health")
        assert isinstance(connection.sock, ssl.SSLSocket)
        peer = connection.sock.getpeercert()
        assert peer is not None
        return str(peer["serialNumber"]), json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_without_options_there_is_no_tls() -> None:
    assert config() is None


def test_certificates_and_keys_belong_together_in_order() -> None:
    made = config("--tls-cert", "a.pem,b.pem", "--tls-key", "a.key", "--tls-key", "b.key")
    assert made == TlsConfig((("a.pem", "a.key"), ("b.pem", "b.key")))
    made = config(CLLM_TLS_CERT="a", CLLM_TLS_KEY="b", CLLM_TLS_CLIENT_CA="c",
                  CLLM_TLS_CLIENT_AUTH="optional")  # fmt: skip
    assert made == TlsConfig((("a", "b"),), "c", "optional")


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("--tls-cert", "a"), "one key for each certificate"),
        (("--tls-cert", "a,b", "--tls-key", "a"), "names 2 files and --tls-key 1"),
        (("--tls-client-ca", "a"), "--tls-client-ca needs --tls-cert"),
        (("--tls-self-signed", "--tls-cert", "a", "--tls-key", "b"), "give one of them"),
    ],
)
def test_a_contradiction_is_refused(argv: tuple[str, ...], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        config(*argv)


def test_a_certificate_that_cannot_be_used_is_refused_in_one_line() -> None:
    said = refusal("--port", "0", "--tls-cert", CERT, "--tls-key", certificate("renewed")[1])
    assert "localhost.pem" in said and "another certificate" in said


def test_the_program_serves_https_and_reloads_on_sighup(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(CERT, cert)
    shutil.copy(KEY, key)
    child = Child("--tls-cert", str(cert), "--tls-key", str(key))
    try:
        child.ready()
        assert any("serves https://127.0.0.1" in line for line in child.seen)
        old, body = health(child.port, client_context())
        assert body["data"]["status"] == "healthy"
        for name, target in zip(certificate("renewed"), (cert, key), strict=True):
            status = os.stat(target)
            shutil.copy(name, target)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        child.signal(signal.SIGHUP)
        child.until("loaded the TLS certificates: localhost")
        assert health(child.port, client_context())[0] != old
        child.signal(signal.SIGTERM)
        assert child.wait() == 0
    finally:
        child.process.kill()
        child.process.wait()


def test_a_self_signed_certificate_is_made_once_and_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    from cllm.self_signed import self_signed

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cert, key = self_signed("127.0.0.1")
    assert os.stat(key).st_mode & 0o077 == 0, "others cannot read the key"
    before = Path(cert).read_bytes()
    assert self_signed("127.0.0.1") == (cert, key)
    assert Path(cert).read_bytes() == before
    child = Child("--tls-self-signed", XDG_CACHE_HOME=str(tmp_path))
    try:
        child.ready()
        child.until("self-signed. Clients must trust " + cert)
        assert child.until(r"curl https://\S+ --cacert ")
        for host in ("localhost", "127.0.0.1"):
            context = ssl.create_default_context(cafile=cert)
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            connection = http.client.HTTPSConnection(host, child.port, context=context)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
            connection.close()
    finally:
        child.process.kill()
        child.process.wait()
    other, other_key = self_signed("host.example")
    assert other != cert and Path(other).read_bytes() != before
    assert Path(cert).read_bytes() == before, "a server that has it may run"
    Path(other_key).write_bytes(Path(key).read_bytes())  # two first starts at once
    between = Path(other).read_bytes()
    assert self_signed("host.example") == (other, other_key)
    assert Path(other).read_bytes() != between


@pytest.mark.parametrize(
    ("hosts", "same"),
    [
        ("2001:DB8::1", "2001:db8:0::1"),
        ("fe80::1%lo", "fe80::1"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("127.0.0.2,127.0.0.3", "127.0.0.3, 127.0.0.2"),
        ("0.0.0.0,::", "localhost"),
        ("localhost", "127.0.0.1,::1"),
    ],
)
def test_the_same_hosts_have_the_same_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: str, same: str
) -> None:
    pytest.importorskip("cryptography")
    from cllm.self_signed import self_signed

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cert, key = self_signed(hosts)
    before = Path(cert).read_bytes()
    for again in (hosts, same, hosts):
        assert self_signed(again) == (cert, key)
        assert Path(cert).read_bytes() == before


def test_a_host_that_no_certificate_can_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    from cllm.option_table import SettingsError
    from cllm.self_signed import self_signed

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match=r"--host: 'a\.\.b' is no name for a certificate"):
        self_signed("a..b")
