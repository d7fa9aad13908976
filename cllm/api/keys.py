"""API keys: who may ask anything but ``/health``."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from cllm.api.tenants import TENANT
from cllm.http import HttpError, HttpRequest
from cllm.http.handler import Check

OPEN = ("/health", "/v1/health")  # for balancers and supervisors, which have no key

_HOW = 'send one as "Authorization: Bearer KEY" or as "x-api-key: KEY"'


def require_key(keys: Iterable[str]) -> Check:
    """A check that answers 401 to requests without one of the keys (RFC 6750, section 2.1).

    A browser's preflight carries no key: CORS must stand around this.
    """
    # Digests are equally long, so that neither time nor memory tells anything of a key.
    known = [sha256(key.encode()).digest() for key in dict.fromkeys(keys)]

    def number_of(key: str) -> int:
        """1 for the first of the keys; 0: it is none of them."""
        given = sha256(key.encode()).digest()
        # All of them: which one fits must not show in the time either.
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
        raise HttpError(401, f"the API key is not valid; {_HOW}", fields)

    return check


def _keys_of(request: HttpRequest) -> list[str]:
    """What was sent in either place: some clients always fill one of them with a dummy."""
    scheme, _, token = (request.headers.get("authorization") or "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, request.headers.get("x-api-key")) if key]
