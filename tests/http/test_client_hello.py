"""The host name in a ClientHello: however it comes, and whatever else comes."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from cllm.http import TlsConfig
from cllm.http.client_hello import MOST, client_hello, server_name
from tests.http.http_wire import (
    RawClient,
    Serve,
    TlsClient,
    certificate,
    client_context,
    encode,
    wait_until,
)

TWO = TlsConfig((certificate("localhost"), certificate("example")))
LONG = 3600.0


class Hello:
    """A client without a socket; `data` is the record with its ClientHello."""

    def __init__(self, name: str = "a.example", context: ssl.SSLContext | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or client_context()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.data = self.outgoing.read()

    def in_records(self, size: int) -> bytes:
        """The same message in records of `size` bytes."""
        head, message = self.data[:3], self.data[5:]
        parts = [message[at : at + size] for at in range(0, len(message), size)]
        return b"".join(head + len(part).to_bytes(2, "big") + part for part in parts)

    def renamed(self, name: bytes) -> bytes:
        """With another name of the same length."""
        asked = str(self.tls.server_hostname).encode()
        assert self.data.count(asked) == 1 and len(asked) == len(name)
        return self.data.replace(asked, name)

    def go_on(self, client: RawClient) -> None:
        """Complete the handshake; the hello has been sent."""
        while True:
            self.incoming.write(client.receive(65536))
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            finally:
                client.send(self.outgoing.read())
            return


@pytest.mark.parametrize("name", ["a.example", "A.Example", "x" * 60 + ".example"])
@pytest.mark.parametrize("size", [64, 100, 16_000])
def test_the_name_is_read_from_any_records(name: str, size: int) -> None:
    data = Hello(name).in_records(size)
    message, needed = client_hello(data)
    assert needed <= len(data)
    assert server_name(message) == name.lower()
    for cut in range(1, len(data)):
        _, needed = client_hello(data[:cut])
        assert cut < needed <= len(data), "so that it is asked for, and not more"


def test_a_hello_that_is_not_complete_names_no_host() -> None:
    whole = Hello("x" * 60 + ".example").data[5:]
    for cut in range(len(whole)):
        assert server_name(whole[:cut]) == ""
    assert server_name(whole) != ""


def test_what_names_no_host_in_ascii_has_no_name() -> None:
    unnamed = Hello("127.0.0.1").data
    assert server_name(client_hello(unnamed)[0]) == ""
    assert server_name(client_hello(Hello().renamed(b"\xc3\xa4.example"[:9]))[0]) == ""


def test_any_other_bytes_have_no_name_or_some_and_no_error() -> None:
    data = Hello().data
    message, _ = client_hello(data)
    for cut in range(len(message)):
        server_name(message[:cut])
    for index in range(len(data)):
        for value in (0, 1, 0x7F, 0xFF):
            changed, _ = client_hello(data[:index] + bytes([value]) + data[index + 1 :])
            assert len(server_name(changed)) <= len(data)
    for other in (b"", b"\x16", b"\x16\3\1\0\0" * 2000, b"GET / HTTP/1.1\r\n", bytes(MOST)):
        found, needed = client_hello(other)
        assert server_name(found) == "" and needed <= len(other) + 5


def names_of(tls: ssl.SSLObject) -> set[str]:
    peer: Any = tls.getpeercert()
    return {str(value) for kind, value in peer["subjectAltName"] if kind == "DNS"}


@pytest.mark.parametrize("size", [1, 300])
@pytest.mark.parametrize("record", [100, 16_000])
def test_a_hello_in_parts_gets_the_certificate_that_it_names(
    serve: Serve, size: int, record: int
) -> None:
    server = serve(tls=TWO, workers=1)
    hello = Hello()
    data = hello.in_records(record)
    with RawClient(server.port) as client:
        for at in range(0, len(data), size):
            client.send(data[at : at + size])
        hello.go_on(client)
        assert "a.example" in names_of(hello.tls)
        hello.tls.write(encode())
        client.send(hello.outgoing.read())
        assert client.receive(1) != b""


@pytest.mark.parametrize(("records", "name"), [(16, "a.example"), (17, "localhost")])
def test_a_hello_in_too_many_records_gets_the_first_certificate(
    serve: Serve, records: int, name: str
) -> None:
    context = client_context()
    context.check_hostname = False
    server = serve(tls=TWO)
    hello = Hello("a.example", context)
    # Each holds as much, so that the name is in the first ones.
    data = hello.in_records(-(-(len(hello.data) - 5) // records))
    with RawClient(server.port) as client:
        client.send(data)
        hello.go_on(client)
        assert name in names_of(hello.tls)


@pytest.mark.parametrize("certificates", [TWO, TlsConfig(TWO.certificates[:1])], ids=["two", "one"])
@pytest.mark.parametrize("record", [100, 16_000])
def test_a_name_that_is_not_ascii_gets_the_first_certificate_and_makes_no_noise(
    serve: Serve, capfd: pytest.CaptureFixture[str], certificates: TlsConfig, record: int
) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # sends certificates in plain text
    server = serve(tls=certificates)
    hello = Hello(context=context)
    hello.data = hello.renamed(b"\xe4.example")
    first = ssl.PEM_cert_to_DER_cert(Path(certificate("localhost")[0]).read_text())
    with RawClient(server.port) as client:
        client.send(hello.in_records(record))
        assert first in client.until(first)
    with TlsClient(server.port) as other:
        assert other.get("/health").status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sent", [1, 5, 6, 200])
def test_a_client_that_ends_in_its_hello_is_closed(serve: Serve, sent: int) -> None:
    server = serve(tls=TWO, head_timeout=LONG)
    with RawClient(server.port) as client:
        client.send(Hello().data[:sent])
        wait_until(lambda: server.stats().parked == 1, "the rest is awaited")
        client.half_close()
        assert client.ended()


def test_a_hello_that_does_not_come_to_its_end_holds_no_worker_and_ends(serve: Serve) -> None:
    server = serve(tls=TWO, workers=1, head_timeout=0.3)
    silent = [RawClient(server.port) for _ in range(4)]
    for client, count in zip(silent, (1, 5, 100, 200), strict=True):
        client.send(Hello().data[:count])
    with TlsClient(server.port) as other:
        assert other.get("/health").status == 200
    assert all(client.ended() for client in silent)
    assert server.stats().timeouts_total == 4
