"""The tenant of a request: the engine shares its slots fairly between tenants."""

from __future__ import annotations

from ipaddress import IPv6Address

from cllm.http import HttpRequest

TENANT = "tenant"
"""Where in a request's context its tenant is, if a key says whose it is."""


def tenant_of(request: HttpRequest) -> str:
    """The number of the API key; without keys the client's address.

    For IPv6 the first 64 bits of it, the least that one subscriber gets (RFC 6177).
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
