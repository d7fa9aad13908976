"""The PROXY protocol, version 2: a proxy tells the client's address before the first byte.

Source: the PROXY protocol specification of HAProxy, section 2.2. Not a byte more than the header is
read, so that any protocol can follow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from time import monotonic

from cllm.http.connection import DONE, Connection, ConnectionProtocol, Context
from cllm.http.forwarded import unmapped
from cllm.http.poller import READ, WRITE
from cllm.http.transport import WANT_READ
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED = 16  # bytes: signature, version and command, family, length
MOST = 1024  # bytes after those; addresses take up to 216, the rest are optional values

_LOCAL, _PROXY = 0x20, 0x21  # version 2, and the command
_SIZES = {0x11: 4, 0x21: 16}  # TCP over IPv4, over IPv6: bytes of an address

Enter = Callable[[str], bool]


class ProxyProtocol:
    """Reads the header, then the connection becomes `following`."""

    __slots__ = ("_context", "_enter", "_following", "_received", "_trusts", "_wanted")

    def __init__(
        self,
        context: Context,
        following: ConnectionProtocol,
        trusts: Callable[[str], bool],
        enter: Enter,
    ) -> None:
        """trusts: whether an address is that of a proxy. enter: counts a client's connection."""
        self._context = context
        self._following = following
        self._trusts = trusts
        self._enter = enter
        self._received = bytearray()
        self._wanted = FIXED

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        if not self._trusts(connection.client[0]):
            return _refused(connection, "it is not in --trusted-proxies")
        while (left := self._wanted - len(self._received)) > 0:
            view = workspace.buffer[:left]
            count = connection.transport.read(view)
            if count < 0:
                return READ if count == WANT_READ else WRITE
            if count == 0:
                return DONE
            self._received += view[:count]
            if len(self._received) == FIXED:
                head = self._received
                length = int.from_bytes(head[14:16], "big")
                if head[:12] != SIGNATURE or head[12] not in (_LOCAL, _PROXY) or length > MOST:
                    return _refused(connection, "it sent no PROXY header of version 2")
                self._wanted = FIXED + length
        return self._go_on(connection, workspace)

    def _go_on(self, connection: Connection, workspace: Workspace) -> int:
        client = self._client()
        if client is not None:
            if not self._enter(client[0]):
                return DONE  # the client is at its limit of connections
            connection.client = client
        connection.become(self._following)
        return self._following.advance(connection, workspace)

    def _client(self) -> tuple[str, int] | None:
        """The address in a complete header; None: that of the proxy stays."""
        head, body = self._received[:FIXED], bytes(self._received[FIXED:])
        size = _SIZES.get(head[13])
        if head[12] == _LOCAL or size is None or len(body) < 2 * size + 4:
            return None
        raw = body[:size]
        address = IPv4Address(raw) if size == 4 else unmapped(IPv6Address(raw))
        return str(address), int.from_bytes(body[2 * size : 2 * size + 2], "big")

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        if connection.deadline <= monotonic() or self._context.draining:
            return DONE
        return self.advance(connection, workspace)

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        return None

    def idle_since(self, connection: Connection) -> float | None:
        return self._following.idle_since(connection) if not self._received else None

    def closed(self) -> None:
        self._following.closed()


def _refused(connection: Connection, reason: str) -> int:
    _log.warning("closed a connection of %s: %s", connection.client[0], reason)
    return DONE
