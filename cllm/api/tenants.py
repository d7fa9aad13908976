"""The tenant of a request: the engine shares its slots fairly between tenants."""

from __future__ import annotations

from ipaddress import IPv6Address

from cllm.http import HttpRequest

TENANT = "tenant"
"""The entry of a request's context that holds its tenant, if a key identifies it."""


def tenant_of(request: HttpRequest) -> str:
    """The number of the key that was sent; without keys the client's address.

    Of an IPv6 address the first 64 bits: one subscriber has at least a /64 (RFC 6177).
    """
    given = request.context.get(TENANT)
    if given is not None:
        return str(given)
    host = request.client[0]
    if ":" not in host:
        return host
    address = IPv6Address(host)
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else f"{IPv6Address(int(address) >> 64 << 64)}/64"
