"""Who the client is behind proxies, and that a client cannot be somebody else."""

from __future__ import annotations

import logging
import socket
import ssl

import pytest

from cllm.http import HttpHandler, ServerConfig, TlsConfig, acceptor
from cllm.http.forwarded import MOST_HOPS, MOST_PAIRS, TrustedProxies
from cllm.http.proxy_protocol import SIGNATURE
from cllm.http.request import Headers
from tests.http.http_wire import (
    PATIENCE,
    Connect,
    Serve,
    any_version,
    certificate,
    client_context,
    get_over,
    tls_connection,
    turned_away,
    wait_until,
)

PROTOCOLS = ("http/1.1",)

PROXIES = TrustedProxies(("10.0.0.0/8", "192.0.2.1", "2001:db8::/32"))
PEER = ("10.0.0.1", 4711)


def client(*fields: tuple[str, str], peer: str = PEER[0]) -> str:
    return PROXIES.client_of((peer, 4711), Headers(fields))[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7, 10.9.9.9, 192.0.2.1", "203.0.113.7"),
        ("1.1.1.1,203.0.113.7 ", "203.0.113.7"),  # what a client had sent before
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),  # a proxy asks for itself
        ("203.0.113.7:52044", "203.0.113.7"),
        ("[2001:DB9::7]:443", "2001:db9::7"),
        ("2001:db9::7", "2001:db9::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, unknown, 10.9.9.9", "10.9.9.9"),
        ("unknown", PEER[0]),
        ("", PEER[0]),
        ("203.0.113.7,", PEER[0]),
        ("203.0.113.777", PEER[0]),
        ("203.0.113.7 203.0.113.8", PEER[0]),
        ('fe80::1%eth0 status=200 "', PEER[0]),  # a zone may be any text
    ],
)
def test_x_forwarded_for_is_read_from_the_right(value: str, expected: str) -> None:
    assert client(("X-Forwarded-For", value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ('For="203.0.113.7:80";proto=https;by=10.0.0.1', "203.0.113.7"),
        ('proto=https; for="[2001:db9::7]:4711"', "2001:db9::7"),
        ("for=1.1.1.1, for=203.0.113.7, for=10.2.2.2", "203.0.113.7"),
        ("for=203.0.113.7, for=_hidden", PEER[0]),
        ("for=203.0.113.7, proto=https", PEER[0]),
        ("for=203.0.113.7;xfor=1.1.1.1", "203.0.113.7"),
        # What a client sends in front must not hide what the proxy appends.
        ('for=1.1.1.1, by=", for=203.0.113.7', PEER[0]),
        ('for=1.1.1.1;by="\\", for="203.0.113.7"', PEER[0]),
        ('by="x, for=1.1.1.1", for=203.0.113.7', "203.0.113.7"),
        ('host="a;for=1.1.1.1";for=203.0.113.7', "203.0.113.7"),
        ('for=203.0.113.7;host="a;for=1.1.1.1"', "203.0.113.7"),
        ('host="a; FOR=1.1.1.1;";proto=https', PEER[0]),
        ('host="a\\";for=1.1.1.1;by=\\"";for=203.0.113.7', "203.0.113.7"),
        ('host="a\\\\";for=203.0.113.7;by="\\";for=1.1.1.1;"', "203.0.113.7"),
        ('host="a;for=1.1.1.1, for=2.2.2.2";for=203.0.113.7, for=10.2.2.2', "203.0.113.7"),
        ('for=203.0.113.7, host="a;for=1.1.1.1, for=2.2.2.2"', PEER[0]),
        # Quoted strings
        ('for="203\\.0.113\\.7"', "203.0.113.7"),
        ('for="\\[2001:db9::7\\]:4711"', "2001:db9::7"),
        ('for="[2001:db9::7]";by="[2001:db8::1]:80"', "2001:db9::7"),
        ('for="2001:db9::7"', "2001:db9::7"),
        ('for="[2001:db9::7]:_port.1-a_"', "2001:db9::7"),
        ('for="203.0.113.7:_port"', "203.0.113.7"),
        ('for="203.0.113.7:"', PEER[0]),
        ('for="[203.0.113.7"', PEER[0]),
        ('for="\\"203.0.113.7\\""', PEER[0]),
        ('for="203.0.113.7, 1.1.1.1"', PEER[0]),
        ('for=""', PEER[0]),
        ('for="unknown"', PEER[0]),
        ("for=UNKNOWN, for=10.2.2.2", "10.2.2.2"),
        ('for="_SEVKISEK:4711", for=10.2.2.2', "10.2.2.2"),
        ("for=[2001:db9::7]", PEER[0]),
        ("for=203.0.113.7:80", PEER[0]),
        # An element names one address; what a client sends in front does not count.
        ("for=1.1.1.1;for=203.0.113.7", PEER[0]),
        ("for=203.0.113.7;by=_a;For=203.0.113.7", PEER[0]),
        ("for=1.1.1.1;for=2.2.2.2, for=203.0.113.7", "203.0.113.7"),
        ("for=203.0.113.7, for=1.1.1.1;for=2.2.2.2, for=10.2.2.2", "10.2.2.2"),
        # Names in any case, blanks, empty pairs and elements
        ("FOR=203.0.113.7;PROTO=https", "203.0.113.7"),
        ("\t for=203.0.113.7 \t; proto=https ;by=_a\t,\tfor=10.2.2.2 ", "203.0.113.7"),
        ("for=203.0.113.7;", "203.0.113.7"),
        (";;for=203.0.113.7;;proto=https", "203.0.113.7"),
        (", for=203.0.113.7", "203.0.113.7"),
        (" ", PEER[0]),
        ("for=203.0.113.7,", PEER[0]),
        ("for=203.0.113.7, ,for=10.2.2.2", "10.2.2.2"),
        # What is no list of pairs
        ("203.0.113.7", PEER[0]),
        ("for = 203.0.113.7", PEER[0]),
        ("for= 203.0.113.7", PEER[0]),
        ("for=203.0.113.7 proto=https", PEER[0]),
        ('for="203.0.113.7"x', PEER[0]),
        ('for="203.0.113.7', PEER[0]),
        ("for=203.0.113.7;proto", PEER[0]),
        ("for=203.0.113.7;=https", PEER[0]),
        ("for=, for=203.0.113.7", PEER[0]),
        ("for=203.0.113.7" + ", for=10.1.1.1" * 400, PEER[0]),  # too long
        ("," * MOST_PAIRS + "for=203.0.113.7", PEER[0]),  # too many
        ("," * (MOST_PAIRS - 1) + "for=203.0.113.7", "203.0.113.7"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_says(value: str, expected: str) -> None:
    assert client(("Forwarded", value)) == expected


def test_two_fields_that_disagree_name_no_client() -> None:
    told = ("X-Forwarded-For", "203.0.113.7")
    assert client(told, ("Forwarded", "for=203.0.113.7")) == "203.0.113.7"
    assert client(told, ("Forwarded", "for=1.1.1.1")) == PEER[0]


def test_lines_of_a_field_are_one_list() -> None:
    lines = [("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7")]
    assert client(*lines) == "203.0.113.7"


@pytest.mark.parametrize("peer", ["203.0.113.9", "11.0.0.1", "192.0.2.2", "", "fe80::1%eth0"])
def test_a_field_of_any_other_peer_is_ignored(peer: str) -> None:
    assert client(("X-Forwarded-For", "1.1.1.1"), peer=peer) == peer


def test_a_mapped_address_is_that_of_the_proxy() -> None:
    assert client(("X-Forwarded-For", "1.1.1.1"), peer="::ffff:10.0.0.1") == "1.1.1.1"


def test_an_endless_list_is_not_read_to_its_end() -> None:
    hops = ", ".join(["203.0.113.7", *["10.1.1.1"] * MOST_HOPS])
    assert client(("X-Forwarded-For", hops)) == "10.1.1.1"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "proxy.example", "", "*"])
def test_what_is_no_network_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"trusted_proxies: .* is not a network such as"):
        ServerConfig(trusted_proxies=(text,))


# Over sockets


def telling() -> HttpHandler:
    handler = HttpHandler()
    handler.get("/", lambda request: f"{request.client[0]}")
    handler.post("/", lambda request: f"{request.client[0]} {len(request.body)}")
    return handler


@any_version
def test_the_handler_sees_the_client_of_a_trusted_proxy_only(
    serve: Serve, connect: Connect
) -> None:
    for networks, expected in ((("127.0.0.0/8",), b"203.0.113.7"), ((), b"127.0.0.1")):
        peer = connect(serve(telling(), trusted_proxies=networks))
        for _ in range(2):
            reply = peer.request(headers={"X-Forwarded-For": "1.1.1.1, 203.0.113.7"})
            assert reply.body == expected
        body = peer.request("POST", "/", b"x" * 70_000, {"X-Forwarded-For": "203.0.113.7"})
        assert body.body == expected + b" 70000"


@any_version
def test_a_client_cannot_choose_its_address_in_a_quoted_string(
    serve: Serve, connect: Connect
) -> None:
    peer = connect(serve(telling(), trusted_proxies=("127.0.0.0/8",)))
    sent = {"Forwarded": 'host="a;for=1.1.1.1";for=203.0.113.7'}
    assert peer.request(headers=sent).body == b"203.0.113.7"


@any_version
def test_a_proxy_has_no_limit_of_connections(serve: Serve, connect: Connect) -> None:
    server = serve(telling(), max_connections_per_client=1, trusted_proxies=("127.0.0.0/8",))
    peers = [connect(server) for _ in range(5)]
    assert [peer.request().status for peer in peers] == [200] * 5


# The PROXY protocol

V4 = b"\x21\x11\0\x0c" + bytes([203, 0, 113, 7, 10, 0, 0, 1]) + b"\x12\x67\0\x50"
V6 = bytes.fromhex("21210024" + "20010db9" + "00" * 11 + "07" + "00" * 16 + "12670050")
MAPPED = b"\x21\x21\0\x24" + (bytes(10) + b"\xff\xff" + V4[4:8]) * 2 + V4[12:]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (V4, b"203.0.113.7"),
        (V6, b"2001:db9::7"),
        (MAPPED, b"203.0.113.7"),
        (b"\x21\x11\0\x10" + V4[4:] + b"\x04\0\x01x", b"203.0.113.7"),  # with an optional value
        (b"\x20\0\0\0", b"127.0.0.1"),  # LOCAL: the proxy asks for itself
        (b"\x21\0\0\0", b"127.0.0.1"),  # no address
        (b"\x21\x12\0\x0c" + V4[4:], b"127.0.0.1"),  # UDP
        (b"\x21\x11\0\x04" + V4[4:8], b"127.0.0.1"),  # too short
    ],
)
@any_version
def test_a_proxy_header_names_the_client(
    serve: Serve, connect: Connect, header: bytes, expected: bytes
) -> None:
    server = serve(telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))
    client = connect(server, preamble=SIGNATURE + header)
    assert [client.get().body, client.get().body] == [expected] * 2


def test_a_proxy_header_may_come_with_requests_or_byte_by_byte(
    serve: Serve, connect: Connect
) -> None:
    header, expected = V6, b"2001:db9::7"
    server = serve(telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",))
    together = connect(server)
    together.send(SIGNATURE + header + GET + GET)
    assert [together.reply().body, together.reply().body] == [expected] * 2
    apart = connect(server)
    for byte in SIGNATURE + header + GET:
        apart.send(bytes([byte]))
    assert apart.reply().body == expected


@pytest.mark.parametrize(
    "sent",
    [
        GET,
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n" + GET,
        SIGNATURE + b"\x11" + V4[1:],
        SIGNATURE + b"\x22" + V4[1:],
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE[:-1] + b"\r" + V4,
    ],
)
def test_anything_else_is_closed(serve: Serve, connect: Connect, sent: bytes) -> None:
    peer = connect(serve(telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",)))
    peer.send(sent)
    assert peer.ended()


@any_version
def test_no_other_peer_can_connect(serve: Serve, connect: Connect) -> None:
    server = serve(telling(), proxy_protocol=True, trusted_proxies=("10.0.0.0/8",))
    assert turned_away(connect, server, SIGNATURE + V4)


def test_a_header_that_does_not_come_is_not_awaited(serve: Serve, connect: Connect) -> None:
    proxied = serve(
        telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",), head_timeout=0.1
    )
    peer = connect(proxied)
    peer.send(SIGNATURE)
    assert peer.ended()


def test_a_stop_does_not_wait_for_a_header(serve: Serve, connect: Connect) -> None:
    server = serve(
        telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",), head_timeout=3600.0,
        grace=3600.0,
    )  # fmt: skip
    peers = [connect(server) for _ in range(2)]
    peers[0].send(SIGNATURE)
    wait_until(lambda: server.stats().parked == 2, "both wait")
    server.stop()
    assert all(peer.ended() for peer in peers)


@pytest.mark.parametrize("size", [1, 7, 1 << 16], ids="{} bytes at a time".format)
@pytest.mark.parametrize("optional", [0, 996], ids="{} optional bytes".format)
def test_a_proxy_header_stands_before_tls(serve: Serve, size: int, optional: int) -> None:
    header = V4[:2] + (12 + optional).to_bytes(2, "big") + V4[4:] + b"\x04" * optional
    server = serve(
        telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",),
        tls=TlsConfig((certificate("localhost"),)),
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        sent = SIGNATURE + header
        for at in range(0, len(sent), size):
            sock.sendall(sent[at : at + size])
        with client_context().wrap_socket(sock, server_hostname="localhost") as secured:
            assert get_over(secured, "/").endswith(b"203.0.113.7")


def test_tls_without_the_proxy_header_is_closed(serve: Serve) -> None:
    server = serve(
        telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",),
        tls=TlsConfig((certificate("localhost"),)),
    )  # fmt: skip
    with pytest.raises((ssl.SSLError, ConnectionError)):
        tls_connection(server.port, client_context())


@any_version
def test_mapped_addresses_of_clients_are_counted_as_what_they_stand_for(
    serve: Serve, connect: Connect
) -> None:
    """They have their first 64 bits in common, and are not one client."""
    server = serve(
        telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",),
        max_connections_per_client=1,
    )  # fmt: skip
    first = connect(server, preamble=SIGNATURE + MAPPED)
    assert first.get().body == b"203.0.113.7"
    other = MAPPED.replace(V4[4:8], bytes([203, 0, 113, 8]))
    assert connect(server, preamble=SIGNATURE + other).get().body == b"203.0.113.8"
    assert turned_away(connect, server, SIGNATURE + V4), "it is the first one"


@any_version
def test_the_connections_of_a_client_behind_a_proxy_are_counted(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(acceptor, "WARN_INTERVAL", 10 * PATIENCE)
    server = serve(
        telling(), proxy_protocol=True, trusted_proxies=("127.0.0.0/8",),
        max_connections_per_client=1,
    )  # fmt: skip
    first = connect(server, preamble=SIGNATURE + V4)
    assert first.get().status == 200
    with caplog.at_level(logging.WARNING):
        assert turned_away(connect, server, SIGNATURE + V4)
        assert turned_away(connect, server, SIGNATURE + V4)
    assert caplog.text.count("a connection of 203.0.113.7") == 1, "one warning"
    assert server.stats().turned_away_total == 2
    assert connect(server, preamble=SIGNATURE + V6).get().status == 200
    first.close()
    assert len(server._acceptor.clients) <= 2


def test_it_needs_the_addresses_of_the_proxies() -> None:
    with pytest.raises(ValueError, match="proxy_protocol needs trusted_proxies"):
        ServerConfig(proxy_protocol=True)
