"""The client behind proxies: X-Forwarded-For and Forwarded (RFC 7239), from trusted ones only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from cllm.http.request import Headers

Client = tuple[str, int]

MOST_HOPS = 32  # that are looked at; each costs about 1 us
MOST_LENGTH = 4096  # of a Forwarded field; a longer one cannot be read
MOST_PAIRS = 256  # of all its elements; each costs about 0.4 us

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# A pair, which may be empty, and what ends it: RFC 7239 section 4, with blanks around ";" and ",".
_PAIR = re.compile(rf"[ \t]*(?:({_TOKEN})=({_TOKEN}|{_QUOTED})[ \t]*)?([;,]|\Z)")
_ESCAPE = re.compile(r"\\(.)")
_PORT = r"(?::(?:\d{1,5}|_[A-Za-z0-9._\-]+))?"  # section 6.3
_BRACKETED = re.compile(rf"\[([0-9A-Fa-f:.]+)\]{_PORT}")
_WITH_PORT = re.compile(rf"([0-9.]+){_PORT}")


class TrustedProxies:
    """The networks of proxies whose header fields are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Raises ValueError that names the network."""
        self._networks = tuple(_network(text) for text in networks)
        self.trusts = lru_cache(4096)(self._trusts)

    def _trusts(self, host: str) -> bool:
        """Whether an address is that of a proxy."""
        address = _address(host)
        return address is not None and any(address in network for network in self._networks)

    def client_of(self, peer: Client, headers: Headers) -> Client:
        """The last address before the trusted proxies; the peer itself if it is not one of them.

        A client can send either field through a proxy that writes only the other. If they
        disagree, or one cannot be read, the peer counts.
        """
        if not self.trusts(peer[0]):
            return peer
        found = set()
        if (lines := headers.get("x-forwarded-for")) is not None:
            found.add(self._last_untrusted(peer, lines.split(",")))
        if (lines := headers.get("forwarded")) is not None:
            hops = _hops(lines)
            found.add(peer if hops is None else self._last_untrusted(peer, hops))
        return found.pop() if len(found) == 1 else peer

    def _last_untrusted(self, peer: Client, hops: list[str]) -> Client:
        last = peer
        for hop in hops[: -MOST_HOPS - 1 : -1]:
            host = _host(hop.strip())
            if host is None:
                break  # "unknown", or a name that hides the address: the proxy that wrote it counts
            last = host, 0
            if not self.trusts(host):
                break
        return last


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is not a network such as 10.0.0.0/8, or an address: {error}"
        ) from None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return unmapped(ip_address(host))
    except ValueError:
        return None


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for (RFC 4291 section 2.5.5.2), else itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _hops(value: str) -> list[str] | None:
    """The `for` of each element, "" where there is none; None: it is not a Forwarded field.

    The whole value must have the form: a client may send an open quote before the proxy's part.
    An element with two counts as one with none. So does an empty element, which RFC 9110 section
    5.6.1 ignores: what stands in front of it came from the client of the proxy that wrote it.
    """
    if len(value) > MOST_LENGTH:
        return None
    hops: list[str] = []
    found: list[str] = []
    at = 0
    for _ in range(MOST_PAIRS):
        pair = _PAIR.match(value, at)
        if pair is None:
            return None
        name, text, end = pair.groups()
        if name is not None and name.lower() == "for":
            found.append(_unquoted(text))
        if end != ";":
            hops.append(found[0] if len(found) == 1 else "")
            found.clear()
        if not end:
            return hops
        at = pair.end()
    return None


def _unquoted(text: str) -> str:
    """The content of a token or a quoted string (RFC 9110 section 5.6.4)."""
    return _ESCAPE.sub(r"\1", text[1:-1]) if text.startswith('"') else text


def _host(hop: str) -> str | None:
    """The address of a hop without its port; None if it is none.

    An address with a zone is none: `ip_address` takes any text as the zone, which would then stand
    in the log and name a tenant.
    """
    if "%" in hop:
        return None
    match = _BRACKETED.fullmatch(hop) or _WITH_PORT.fullmatch(hop)
    address = _address(match[1] if match else hop)
    return None if address is None else str(address)
