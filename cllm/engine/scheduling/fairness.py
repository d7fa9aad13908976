"""Fair queueing between tenants: the next request is from the tenant with the fewest tokens used.

Virtual token counters after Sheng et al., "Fairness in Serving Large Language Models" (arXiv
2401.00588). A tenant's counter grows by the tokens computed for it, divided by its weight. Within a
tenant the order is first come, first served. The queue never delays a request while a slot is
free, and a tenant collects no credit while it has no requests: when it returns, its counter is
raised to the minimum of the waiting tenants.

Pure policy: no clock and no threads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Generic, Protocol, TypeVar

GENERATED = 2
"""What a generated token counts; an evaluated token of a prompt counts 1, a cached one nothing."""

_PRUNE_FROM = 64  # tenants without requests that are kept without a check


class Queued(Protocol):
    """An item of the queue: it belongs to a tenant."""

    @property
    def tenant(self) -> str: ...


T = TypeVar("T", bound=Queued)


class _Account(Generic[T]):
    """A tenant with requests. used: virtual tokens. waiting: requests and their arrival numbers."""

    __slots__ = ("running", "used", "waiting", "weight")

    def __init__(self, used: float, weight: float) -> None:
        self.used = used
        self.weight = weight
        self.running = 0
        self.waiting: OrderedDict[T, int] = OrderedDict()

    def rank(self) -> tuple[float, int, int]:
        """The minimum is served next: tokens used, then running requests, then first arrival."""
        return self.used, self.running, next(iter(self.waiting.values()))


class FairQueue(Generic[T]):
    """Waiting requests and the counters of their tenants. For one thread.

    A request is added by `extend`, leaves the queue by `take` and ends by `leave`; `charge` counts
    the tokens computed for its tenant in between.
    """

    def __init__(self, weight: Callable[[str], float] = lambda tenant: 1.0) -> None:
        """weight: a tenant's share relative to the others', above 0."""
        self._weight = weight
        self._active: dict[str, _Account[T]] = {}  # tenants with requests, waiting or running
        self._weights = 0.0  # sum over the active ones
        self._idle: dict[str, float] = {}  # counters above the level of tenants without requests
        self._prune_at = _PRUNE_FROM
        # The counter of a tenant that has always had its share. It rises with all work, so that
        # any number of new tenants cannot overtake a known one forever.
        self._level = 0.0
        self._front: deque[T] = deque()  # preempted requests: they go before all others
        self._arrived = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """All waiting requests, in no particular order."""
        yield from self._front
        for account in self._active.values():
            yield from account.waiting

    @property
    def known(self) -> int:
        """Number of tenants with a counter."""
        return len(self._active) + len(self._idle)

    def extend(self, items: Iterable[T]) -> None:
        """Add new requests, in their order."""
        floor = self._floor()
        for item in items:
            account = self._active.get(item.tenant) or self._activate(item.tenant)
            if not account.waiting:
                account.used = max(account.used, floor)
            self._arrived += 1
            account.waiting[item] = self._arrived
            self._size += 1

    def candidates(self) -> Iterator[T]:
        """All waiting requests, in the order in which to serve them now."""
        yield from self._front
        accounts = [account for account in self._active.values() if account.waiting]
        if accounts:
            first = min(accounts, key=_Account.rank)
            yield from first.waiting
            accounts.remove(first)
            for account in sorted(accounts, key=_Account.rank):
                yield from account.waiting

    def take(self, item: T) -> None:
        """Take a request out of the queue to serve it."""
        self._size -= 1
        account = self._active[item.tenant]
        if item in account.waiting:
            del account.waiting[item]
            account.running += 1
            self._level = max(self._level, account.used)
        else:
            self._front.remove(item)

    def put_back(self, item: T) -> None:
        """Put a preempted request back at the front of all."""
        self._front.appendleft(item)
        self._size += 1

    def rotate(self, item: T) -> None:
        """Move an unfinished request behind the others of its tenant."""
        self._active[item.tenant].waiting.move_to_end(item)

    def charge(self, tenant: str, tokens: float) -> None:
        """Count the tokens computed for a tenant that has requests."""
        account = self._active[tenant]
        account.used += tokens / account.weight
        self._level += tokens / self._weights

    def leave(self, item: T) -> None:
        """Remove a request that has ended, waiting or running."""
        account = self._active[item.tenant]
        if item in account.waiting:
            del account.waiting[item]
            self._size -= 1
        else:
            account.running -= 1
            if item in self._front:
                self._front.remove(item)
                self._size -= 1
        if not account.waiting and not account.running:
            self._deactivate(item.tenant, account)

    def _floor(self) -> float:
        """The counter of a returning tenant: the level, within the waiting tenants' counters."""
        waiting = [account.used for account in self._active.values() if account.waiting]
        return max(min(waiting), min(self._level, max(waiting))) if waiting else self._level

    def _activate(self, tenant: str) -> _Account[T]:
        account: _Account[T] = _Account(self._idle.pop(tenant, 0.0), self._weight(tenant))
        self._active[tenant] = account
        self._weights += account.weight
        return account

    def _deactivate(self, tenant: str, account: _Account[T]) -> None:
        del self._active[tenant]
        self._weights -= account.weight
        if not self._active:
            # No tenant competes any more: past use does not matter.
            self._idle.clear()
            self._level = self._weights = 0.0
        elif account.used > self._level:
            self._idle[tenant] = account.used
            if len(self._idle) >= self._prune_at:
                self._idle = {t: used for t, used in self._idle.items() if used > self._level}
                self._prune_at = max(_PRUNE_FROM, 2 * len(self._idle))


def gives_way(waiting: Mapping[str, Sized], newcomer: str) -> str:
    """The tenant whose newest request is refused when a request arrives at the limit.

    It is the tenant with the most waiting requests; in a tie that includes it, the newcomer's.
    """
    own = len(waiting.get(newcomer, ())) + 1
    most = max(waiting, key=lambda tenant: len(waiting[tenant]), default=newcomer)
    return most if len(waiting.get(most, ())) > own else newcomer
