"""API keys: every endpoint except ``/health`` requires one if any is set."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from hashlib import sha256
from time import monotonic

from cllm.api.rate_limits import Bucket, retry_fields
from cllm.api.tenants import TENANT, Tenant, Tenants, address_of, is_anthropic
from cllm.http import HttpError, HttpRequest
from cllm.http.handler import Check

# For load balancers and supervisors, which have no key; and a page that asks for the key.
OPEN = ("/health", "/v1/health", "/docs", "/docs.js", "/docs.css")

WRONG_PER_MINUTE = 10
"""Wrong keys that one address may send in a minute."""

_MOST = 10_000  # addresses, and pairs of address and key, that are remembered
_Pairs = OrderedDict[tuple[str, bytes], None]  # of address and digest
_HOW = 'send one as "Authorization: Bearer KEY" or as "x-api-key: KEY"'


def require_key(
    tenants: Tenants,
    is_open: Callable[[HttpRequest], bool] | None = None,
    uncounted: Collection[str] = (),
) -> Check:
    """A check that answers 401 to requests without one of the keys (RFC 6750, section 2.1).

    It notes the tenant and refuses a POST that is over its limits, before the body is read. A
    browser's preflight carries no key, so CORS must be outside this check. is_open: further
    requests that need no key. uncounted: paths that limits do not apply to.
    """
    guesses = _Guesses(tenants)

    def check(request: HttpRequest) -> None:
        if request.path in OPEN and not (tenants.isolated and request.query_string):
            return
        if is_open is not None and is_open(request):
            return
        given = _keys_of(request)
        if not given:
            fields = [("WWW-Authenticate", "Bearer")]
            raise HttpError(401, f"an API key is required; {_HOW}", fields)
        tenant = guesses.tenant(address_of(request), given)
        if tenant is None:
            fields = [("WWW-Authenticate", 'Bearer error="invalid_token"')]
            raise HttpError(401, f"the API key is not valid for this server; {_HOW}", fields)
        request.context[TENANT] = tenant
        if request.method == "POST" and request.path not in uncounted:
            tenant.check(is_anthropic(request))

    return check


class _Guesses:
    """Finds the tenants of keys, and bounds wrong keys by address.

    An address that has sent too many gets 429 for every key that was not used from it before: a
    guess is not answered, and the known clients behind the same proxy are not locked out. Next to
    a key that was used from the address no other key is compared: its owner cannot guess without
    end, nor does a dummy that a client always sends count each time. Next to a key that is new, it
    counts the first time: other clients behind the proxy may send the same one.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._used: _Pairs = OrderedDict()
        self._dummies: _Pairs = OrderedDict()  # wrong keys that came next to right ones

    def tenant(self, address: str, given: Sequence[bytes]) -> Tenant | None:
        """Whose the keys with these digests are; None: all are wrong.

        Raises HttpError 429 if too many were wrong for the new ones to be compared.
        """
        find = self._tenants.find
        for digest in given:
            if (address, digest) in self._used and (tenant := find(digest)) is not None:
                return tenant
        with self._lock:
            new = [digest for digest in given if (address, digest) not in self._dummies]
            self._refuse(address, len(new))
            wrong = [digest for digest in new if find(digest) is None]
            if wrong:
                self._count(address, len(wrong))
            for digest in given:
                if (tenant := find(digest)) is not None:
                    _remember(self._used, address, (digest,))
                    _remember(self._dummies, address, wrong)
                    return tenant
        return None

    def _refuse(self, address: str, keys: int) -> None:
        bucket = self._buckets.get(address)
        if bucket is not None and (seconds := bucket.wait(keys, monotonic())):
            fields = retry_fields(seconds)
            message = f"too many wrong API keys from this address; try again in {fields[0][1]} s"
            raise HttpError(429, message, fields)

    def _count(self, address: str, wrong: int) -> None:
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = Bucket(WRONG_PER_MINUTE, monotonic())
            if len(self._buckets) > _MOST:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(address)
        bucket.use(wrong, monotonic())


def _remember(pairs: _Pairs, address: str, digests: Sequence[bytes]) -> None:
    for digest in digests:
        pairs[address, digest] = None
        if len(pairs) > _MOST:
            pairs.popitem(last=False)


def _keys_of(request: HttpRequest) -> Sequence[bytes]:
    """The digests of the keys sent in any field: some clients always fill one with a dummy."""
    scheme, _, token = (request.headers.get("authorization") or "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    fields = [request.headers.get(name) for name in ("x-api-key", "api-key")]  # "api-key": Azure's
    keys = dict.fromkeys(key for key in (bearer, *fields) if key)
    return [sha256(key.encode()).digest() for key in keys]
