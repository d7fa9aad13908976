"""API keys: every endpoint except ``/health`` requires one if any is set."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from cllm.api.tenants import TENANT
from cllm.http import HttpError, HttpRequest
from cllm.http.handler import Check

# For load balancers and supervisors, which have no key; and a page that asks for the key.
OPEN = ("/health", "/v1/health", "/docs", "/docs.js", "/docs.css")

_HOW = 'send one as "Authorization: Bearer KEY" or as "x-api-key: KEY"'


def require_key(keys: Iterable[str]) -> Check:
    """A check that answers 401 to requests without one of the keys (RFC 6750, section 2.1).

    A browser's preflight carries no key, so CORS must be outside this check.
    """
    # Digests have equal length, so that neither time nor memory reveals anything about a key.
    known = [sha256(key.encode()).digest() for key in dict.fromkeys(keys)]

    def number_of(key: str) -> int:
        """The number of the key, from 1; 0: unknown."""
        given = sha256(key.encode()).digest()
        # Compares with all of them, so that the time does not reveal which one matches.
        return sum([compare_digest(given, digest) * n for n, digest in enumerate(known, 1)])

    def check(request: HttpRequest) -> None:
        if request.path in OPEN:
            return
        given = _keys_of(request)
        number = max(map(number_of, given), default=0)
        if number:
            request.context[TENANT] = f"key {number}"
            return
        if not given:
            fields = [("WWW-Authenticate", "Bearer")]
            raise HttpError(401, f"an API key is required; {_HOW}", fields)
        fields = [("WWW-Authenticate", 'Bearer error="invalid_token"')]
        raise HttpError(401, f"the API key is not valid for this server; {_HOW}", fields)

    return check


def _keys_of(request: HttpRequest) -> list[str]:
    """The keys sent in any field: some clients always fill one of them with a dummy."""
    scheme, _, token = (request.headers.get("authorization") or "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    fields = [request.headers.get(name) for name in ("x-api-key", "api-key")]  # "api-key": Azure's
    return [key for key in (bearer, *fields) if key]
