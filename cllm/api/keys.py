"""API keys: every endpoint except ``/health`` requires one if any is set."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from time import monotonic

from cllm.api.rate_limits import Bucket, retry_fields
from cllm.api.tenants import TENANT, Tenants, address_of, is_anthropic
from cllm.http import HttpError, HttpRequest
from cllm.http.handler import Check

# For load balancers and supervisors, which have no key; and a page that asks for the key.
OPEN = ("/health", "/v1/health", "/docs", "/docs.js", "/docs.css")

WRONG_PER_MINUTE = 10
"""Wrong keys that one address may send in a minute."""

_MOST = 10_000  # addresses, and pairs of address and key, that are remembered
_HOW = 'send one as "Authorization: Bearer KEY" or as "x-api-key: KEY"'


def require_key(tenants: Tenants, is_open: Callable[[HttpRequest], bool] | None = None) -> Check:
    """A check that answers 401 to requests without one of the keys (RFC 6750, section 2.1).

    It notes the tenant and refuses a POST that is over its limits, before the body is read. A
    browser's preflight carries no key, so CORS must be outside this check. is_open: further
    requests that need no key.
    """
    guesses = _Guesses()

    def check(request: HttpRequest) -> None:
        if request.path in OPEN and not (tenants.isolated and request.query_string):
            return
        if is_open is not None and is_open(request):
            return
        given = [sha256(key.encode()).digest() for key in _keys_of(request)]
        address = address_of(request)
        for digest in given:
            tenant = tenants.find(digest)
            if tenant is not None:
                guesses.right(address, digest)
                request.context[TENANT] = tenant
                if request.method == "POST":
                    tenant.check(is_anthropic(request))
                return
        if not given:
            fields = [("WWW-Authenticate", "Bearer")]
            raise HttpError(401, f"an API key is required; {_HOW}", fields)
        guesses.wrong(address)
        fields = [("WWW-Authenticate", 'Bearer error="invalid_token"')]
        raise HttpError(401, f"the API key is not valid for this server; {_HOW}", fields)

    return check


class _Guesses:
    """Bounds wrong keys by address.

    An address that has sent too many gets 429 for every key that was not used from it before: a
    guess is not answered, and the known clients behind the same proxy are not locked out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._used: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def right(self, address: str, digest: bytes) -> None:
        """A right key; raises HttpError 429 if it may have been guessed."""
        pair = (address, digest)
        if pair in self._used:
            return
        with self._lock:
            self._refuse(self._buckets.get(address))
            self._used[pair] = None
            if len(self._used) > _MOST:
                self._used.popitem(last=False)

    def wrong(self, address: str) -> None:
        """A wrong key; raises HttpError 429 if there were too many."""
        with self._lock:
            bucket = self._buckets.get(address)
            if bucket is None:
                bucket = self._buckets[address] = Bucket(WRONG_PER_MINUTE, monotonic())
                if len(self._buckets) > _MOST:
                    self._buckets.popitem(last=False)
            self._buckets.move_to_end(address)
            self._refuse(bucket)
            bucket.use(1, monotonic())

    def _refuse(self, bucket: Bucket | None) -> None:
        if bucket is not None and (seconds := bucket.wait(1, monotonic())):
            fields = retry_fields(seconds)
            message = f"too many wrong API keys from this address; try again in {fields[0][1]} s"
            raise HttpError(429, message, fields)


def _keys_of(request: HttpRequest) -> list[str]:
    """The keys sent in any field: some clients always fill one of them with a dummy."""
    scheme, _, token = (request.headers.get("authorization") or "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    fields = [request.headers.get(name) for name in ("x-api-key", "api-key")]  # "api-key": Azure's
    return [key for key in (bearer, *fields) if key]
