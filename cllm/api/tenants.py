"""The tenants: who a request belongs to, what that tenant may use, and what it has used."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address
from time import monotonic
from typing import TYPE_CHECKING, Any

from cllm.api.rate_limits import Bucket, Field, anthropic_fields, openai_fields, retry_fields
from cllm.engine.sharing import COMMON, Scope, Share
from cllm.http import HttpError, HttpRequest

if TYPE_CHECKING:
    from cllm.engine import Engine, Request

TENANT = "tenant"
"""The entry of a request's context that holds its tenant, if a key identifies it."""

MOST_ADDRESSES = 1000
"""Addresses whose use is counted one by one where there are no keys."""

CACHED = 0.1
"""What a prompt token that was found in the cache counts against the limit of tokens."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a key allows. None: no limit.

    priority: the most urgent, that is the lowest, that its requests may have. admin: sees what
    belongs to other keys too. The other fields: see Share.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    queued: int | None = None
    weight: float = 1.0
    priority: int = 0
    admin: bool = False

    @property
    def usual_priority(self) -> int:
        """The priority of requests that name none."""
        return max(0, self.priority)


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the file: the name of its tenant, the SHA-256 of the key, its terms."""

    name: str
    digest: bytes = field(repr=False)
    terms: Terms


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The content of a file of keys. default: the terms of keys that are not in it."""

    keys: tuple[Key, ...]
    default: Terms


class Tenant:
    """One tenant's limits and counts. Any thread.

    A running request costs nothing while it runs: its tokens are read when the next one asks.
    limited: whether there is a limit of requests or tokens. requests: POST requests taken.
    refused: by the limit that refused them: "requests", "tokens", "queue". owner: of its prefixes,
    also in files: no other tenant has it after a restart. None: its name.
    """

    def __init__(self, name: str, terms: Terms, owner: str | None = None) -> None:
        self.name = name
        self.owner = owner or name
        self._lock = threading.Lock()
        self._running: dict[Request, float] = {}  # what was counted of each
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.requests = self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.refused: dict[str, int] = {}
        self.renew(terms)

    def renew(self, terms: Terms) -> None:
        """Other terms from now on; what was used stays used."""
        now = monotonic()
        with self._lock:
            self.terms = terms
            self.share = Share(terms.weight, terms.concurrent, terms.queued)
            self._requests = _renewed(self._requests, terms.requests_per_minute, now)
            self._tokens = _renewed(self._tokens, terms.tokens_per_minute, now)
            self.limited = self._requests is not None or self._tokens is not None

    def tell(self, engine: Engine) -> None:
        """Let the requests that wait in the engine have the present terms too."""
        with self._lock:  # so that the engine hears of the newest last
            engine.renew(self.name, self.share)

    def submitted(self, engine: Engine, share: Share) -> None:
        """Requests were submitted with a share that was read before: other terms may have come."""
        if self.share is not share:
            self.tell(engine)

    # Requests

    def check(self, anthropic: bool = False) -> None:
        """Raise HttpError 429 if a request that comes now is over a limit.

        anthropic: which API's header fields the error has.
        """
        if self.limited:
            self._take(0, anthropic)

    def check_tokens(self) -> None:
        """The same for a request that was taken and is about to be submitted.

        The error says only when to try again: the response gets the other fields by itself.
        """
        if self._tokens is None:
            return
        now = monotonic()
        with self._lock:
            if self._tokens is not None:
                self._check_tokens(self._tokens, None, now)

    def take(self, anthropic: bool = False) -> None:
        """Count a request; raises as `check`, and counts nothing then."""
        self._take(1, anthropic)

    def _take(self, amount: int, anthropic: bool) -> None:
        if not self.limited:
            with self._lock:
                self.requests += amount
            return
        now = monotonic()
        with self._lock:
            requests, tokens = self._requests, self._tokens
            if requests is not None and (seconds := requests.wait(1, now)):
                raise self._over(f"{requests.size} requests", "requests", seconds, anthropic)
            if tokens is not None:
                self._check_tokens(tokens, anthropic, now)
            if requests is not None:
                requests.use(amount, now)
            self.requests += amount

    def _check_tokens(self, tokens: Bucket, anthropic: bool | None, now: float) -> None:
        self._settle(tokens, now)
        if seconds := tokens.wait(0, now):
            raise self._over(f"{tokens.size} tokens", "tokens", seconds, anthropic)

    def note_full_queue(self) -> None:
        """The engine had no room for a request."""
        with self._lock:
            self.refused["queue"] = self.refused.get("queue", 0) + 1

    def _over(self, what: str, limit: str, seconds: float, anthropic: bool | None) -> HttpError:
        self.refused[limit] = self.refused.get(limit, 0) + 1
        fields = retry_fields(seconds)
        message = (
            f"the limit of {what} per minute of this key is reached; try again in {fields[0][1]} s"
        )
        more = () if anthropic is None else self._fields(anthropic)
        return HttpError(429, message, (*fields, *more))

    def fields(self, anthropic: bool) -> Sequence[Field]:
        """The header fields that say what is left, in either API's form; none without limits."""
        if not self.limited:
            return ()
        now = monotonic()
        with self._lock:
            if self._requests is not None:
                self._requests.use(0, now)
            if self._tokens is not None:
                self._settle(self._tokens, now)
            return self._fields(anthropic)

    def _fields(self, anthropic: bool) -> list[Field]:
        form = anthropic_fields if anthropic else openai_fields
        fields: list[Field] = []
        if self._requests is not None:
            fields += form("requests", self._requests)
        if self._tokens is not None:
            fields += form("tokens", self._tokens)
        return fields

    # Tokens: a Meter of the engine.

    def began(self, request: Request) -> None:
        """A request is submitted: its prompt counts."""
        cost = request.usage.prompt_tokens
        with self._lock:
            self._running[request] = cost
            if self._tokens is not None:
                self._tokens.use(cost, monotonic())

    def ended(self, request: Request) -> None:
        """It has ended, whatever ended it; one on which no work began costs nothing."""
        usage, begun = request.usage, request.begun
        with self._lock:
            counted = self._running.pop(request)
            if begun:
                self.prompt_tokens += usage.prompt_tokens
                self.cached_tokens += usage.cached_tokens
                self.generated_tokens += usage.completion_tokens
            if self._tokens is not None:
                cost = _cost(request) if begun else 0.0
                self._tokens.spread(cost - counted, monotonic())

    def _settle(self, tokens: Bucket, now: float) -> None:
        running = self._running
        if not running:
            tokens.use(0, now)
            return
        total = 0.0
        for request, counted in running.items():
            cost = _cost(request)
            if cost != counted:
                running[request] = cost
                total += cost - counted
        tokens.spread(total, now)

    def described(self) -> dict[str, Any]:
        """Counts since the start, and the limits that are set."""
        with self._lock:
            running = [request.usage for request in self._running if request.begun]
            return {
                "tenant": self.name,
                "requests": self.requests,
                "refused": dict(self.refused),
                "in_flight": len(self._running),
                "prompt_tokens": self.prompt_tokens + sum(u.prompt_tokens for u in running),
                "cached_tokens": self.cached_tokens + sum(u.cached_tokens for u in running),
                "generated_tokens": self.generated_tokens
                + sum(u.completion_tokens for u in running),
                "limits": {k: v for k, v in asdict(self.terms).items() if v is not None},
            }


def _renewed(bucket: Bucket | None, size: int | None, now: float) -> Bucket | None:
    if size is None:
        return None
    if bucket is None:
        return Bucket(size, now)
    bucket.resize(size, now)
    return bucket


def _cost(request: Request) -> float:
    usage = request.usage
    return usage.prompt_tokens - (1 - CACHED) * usage.cached_tokens + usage.completion_tokens


class Tenants:
    """All tenants of a server, by their keys.

    plain: keys without a file, called "key 1", "key 2", …; next to a file they have its default
    terms. anyone: all other requests together. Without any key a tenant is a client's address, if
    it sends a POST request; strangers make no more of them than `MOST_ADDRESSES`.
    """

    def __init__(self, plain: Iterable[str] = (), ring: KeyRing | None = None) -> None:
        self._plain = [sha256(key.encode()).digest() for key in dict.fromkeys(plain)]
        self._by_digest: Mapping[bytes, Tenant] = {}
        self._tenants: tuple[Tenant, ...] = ()
        self.anyone = Tenant("", Terms())
        self._lock = threading.Lock()
        self._by_address: dict[str, Tenant] = {}
        self.isolated = ring is not None
        self.renew(ring or KeyRing((), Terms()))

    def renew(self, ring: KeyRing) -> Sequence[Tenant]:
        """Another content of the file. A tenant that keeps its name keeps its counts.

        Returns the tenants that are new or have other terms, to `tell` the engine.
        """
        known = {tenant.name: tenant for tenant in self._tenants}
        wanted = [Key(f"key {n}", d, ring.default) for n, d in enumerate(self._plain, 1)]
        by_digest = {}
        changed: dict[Tenant, None] = {}
        for key in (*wanted, *ring.keys):  # a key of the file takes precedence
            tenant = known.get(key.name)
            if tenant is None:
                # "key 1" is another key when the options name others. Names have no blank.
                owner = f"key {sha256(key.digest).hexdigest()}" if key in wanted else None
                tenant = Tenant(key.name, key.terms, owner)
                changed[tenant] = None
            elif tenant.terms != key.terms:
                tenant.renew(key.terms)
                changed[tenant] = None
            by_digest[key.digest] = tenant
        self._by_digest = by_digest
        self._tenants = tuple(dict.fromkeys(by_digest.values()))
        return tuple(changed)

    @property
    def keyed(self) -> bool:
        """Whether a request needs a key."""
        return self.isolated or bool(self._plain)

    def find(self, digest: bytes) -> Tenant | None:
        """The tenant whose key has this SHA-256.

        The time of the look-up can reveal something about a digest, but nothing about a key.
        """
        return self._by_digest.get(digest)

    def knows(self, tenant: Tenant) -> bool:
        """Whether its key is still valid; a file may have lost it."""
        return tenant is self.anyone or tenant in self._tenants

    def of(self, request: HttpRequest) -> Tenant:
        """The tenant of a request."""
        tenant: Tenant | None = request.context.get(TENANT)
        if tenant is not None:
            return tenant
        if self.keyed or request.method != "POST":
            return self.anyone
        address = address_of(request)
        return self._by_address.get(address) or self._at(address)

    def _at(self, address: str) -> Tenant:
        with self._lock:
            known = self._by_address
            if not address or (len(known) >= MOST_ADDRESSES and address not in known):
                return self.anyone
            return known.setdefault(address, Tenant(address, Terms()))

    def sees_all(self, request: HttpRequest) -> bool:
        """Whether a request may see what belongs to others: without a file of keys each may."""
        return not self.isolated or self.of(request).terms.admin

    def visible(self, request: HttpRequest) -> Sequence[Tenant]:
        """The tenants that a request may see."""
        if not self.sees_all(request):
            return (self.of(request),)
        if self.keyed:
            return self._tenants
        with self._lock:
            known = tuple(self._by_address.values())
        return (*known, self.anyone) if self.anyone.requests else known


def tenant_of(request: HttpRequest) -> str:
    """The name by which the engine divides its slots: the key's, without keys the address."""
    given: Tenant | None = request.context.get(TENANT)
    return address_of(request) if given is None else given.name


def address_of(request: HttpRequest) -> str:
    """The client's address; of an IPv6 address the first 64 bits.

    One subscriber has at least a /64 (RFC 6177).
    """
    host = request.client[0]
    return _network(host) if ":" in host else host


@lru_cache(1024)
def _network(host: str) -> str:
    address = IPv6Address(host)
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else f"{IPv6Address(int(address) >> 64 << 64)}/64"


def scope_of(request: HttpRequest, divided: bool, salt: str | None) -> Scope:
    """Whose prefixes a request may reuse. divided: by tenant. salt: the client's `cache_salt`."""
    if not divided and salt is None:
        return COMMON
    digest = "" if salt is None else sha256(salt.encode()).hexdigest()  # of any length
    if not divided:
        return Scope("", digest)
    tenant: Tenant | None = request.context.get(TENANT)
    return Scope(address_of(request) if tenant is None else tenant.owner, digest)


def is_anthropic(request: HttpRequest) -> bool:
    """Whether Anthropic's clients read the response."""
    path = request.path
    own = path.startswith("/v1/models") and request.headers.get("anthropic-version") is not None
    return own or path.startswith("/v1/messages")
