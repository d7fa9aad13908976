"""Listening sockets: one for each address of a host, all on one port; their errors."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from cllm.http.errors import HttpServerError

FREE_PORT_ATTEMPTS = 8  # port 0 on several addresses: the first port may be in use on another


def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """A listening socket for each address of `host`, all on one port. Raises HttpServerError.

    host: one, or several separated by commas.
    """
    addresses = []
    for name in host.split(","):
        try:
            addresses += socket.getaddrinfo(
                name.strip() or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            raise HttpServerError(
                f"cannot listen on {name.strip()!r}: {error}; give an address of this machine, "
                "such as 127.0.0.1, or 0.0.0.0 for all"
            ) from None
    unique = list(dict.fromkeys((family, address) for family, _, _, _, address in addresses))
    for attempt in range(FREE_PORT_ATTEMPTS):
        try:
            return _bind_all(unique, port, backlog)
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < FREE_PORT_ATTEMPTS - 1:
                continue
            raise HttpServerError(_trouble(host, port, error)) from error
    raise AssertionError("the last attempt returns or raises")


def _bind_all(
    addresses: Sequence[tuple[socket.AddressFamily, tuple[object, ...]]], port: int, backlog: int
) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    unavailable: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listener = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                unavailable = error  # an address family that this machine lacks
                continue
            listeners.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                listeners.pop().close()
                unavailable = error
                continue
            listener.listen(backlog)
            port = listener.getsockname()[1]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        assert unavailable is not None
        raise unavailable
    return listeners


def _trouble(host: str, port: int, error: OSError) -> str:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{place} is in use by another program; stop that one (find it with "
            f"`ss -ltnp sport = :{port}`), or choose another port, 0 for one that is free"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{place} needs rights this user does not have; choose a port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{place} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all"
    return f"cannot listen on {place}: {os.strerror(error.errno or 0)}"


def address_of(listener: socket.socket, scheme: str) -> str:
    """The address of a listening socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
