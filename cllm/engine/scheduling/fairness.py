"""Fair queueing between tenants: the next request is from the tenant with the fewest tokens used.

Virtual token counters after Sheng et al., "Fairness in Serving Large Language Models" (arXiv
2401.00588). A tenant's counter grows by the tokens computed for it, divided by its weight. Within a
tenant the order is first come, first served. A more urgent priority goes before both. The queue
delays a request while a slot is free only if its tenant is at its limit of running requests. A
tenant collects no credit while it has no requests: when it returns, its counter is raised to the
minimum of the waiting tenants.

Pure policy: no clock and no threads.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from cllm.engine.sharing import Share

GENERATED = 2
"""What a generated token counts; an evaluated token of a prompt counts 1, a cached one nothing."""

_ROUNDING = 1e-6  # of a slot: sums and quotients of weights are not exact
CLAIMANTS = 16  # requests of a tenant of which one may claim a slot

_PRUNE_FROM = 64  # tenants without requests that are kept without a check


class Queued(Protocol):
    """An item of the queue: it belongs to a tenant. priority: the lowest is the most urgent."""

    @property
    def tenant(self) -> str: ...
    @property
    def share(self) -> Share: ...
    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Queued)


class _Account(Generic[T]):
    """A tenant with requests. used: virtual tokens. share: of its newest request or `renew`.

    waiting: requests and their arrival numbers, by priority; none of the queues is empty.
    """

    __slots__ = ("running", "share", "used", "waiting", "weight")

    def __init__(self, used: float, share: Share) -> None:
        self.used = used
        self.share = share
        self.weight = share.weight
        self.running = 0
        self.waiting: dict[int, OrderedDict[T, int]] = {}

    def rank(self) -> tuple[int, float, int, int]:
        """The minimum is next: priority, tokens used, running requests, first arrival."""
        waiting = self.waiting
        most_urgent = next(iter(waiting)) if len(waiting) == 1 else min(waiting)
        first = next(iter(waiting[most_urgent].values()))
        return most_urgent, self.used, self.running, first

    @property
    def may_run(self) -> bool:
        """Whether a request waits and the tenant is below its limit of running ones."""
        most = self.share.concurrent
        return bool(self.waiting) and (most is None or self.running < most)

    def ordered(self) -> Iterator[T]:
        """Its waiting requests, the next one first."""
        for priority in sorted(self.waiting):
            yield from self.waiting[priority]

    def add(self, item: T, arrived: int) -> None:
        self.waiting.setdefault(item.priority, OrderedDict())[item] = arrived

    def discard(self, item: T) -> bool:
        """Whether it waited; it does not wait any more."""
        queue = self.waiting.get(item.priority)
        if queue is None or item not in queue:
            return False
        del queue[item]
        if not queue:
            del self.waiting[item.priority]
        return True


class FairQueue(Generic[T]):
    """Waiting requests and the counters of their tenants. For one thread.

    A request is added by `extend`, leaves the queue by `take` and ends by `leave`; `charge` counts
    the tokens computed for its tenant in between.
    """

    def __init__(self) -> None:
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
        # claims() has found none, and since then no request came, went or began: charges do not
        # change whether there are any, and each step asks.
        self._unclaimed = False

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """All waiting requests, in no particular order."""
        yield from self._front
        for account in self._active.values():
            yield from account.ordered()

    @property
    def known(self) -> int:
        """Number of tenants with a counter."""
        return len(self._active) + len(self._idle)

    def extend(self, items: Iterable[T]) -> None:
        """Add new requests, in their order."""
        floor = self._floor()
        for item in items:
            self._unclaimed = False
            account = self._active.get(item.tenant) or self._activate(item.tenant, item.share)
            self._set_share(account, item.share)
            if not account.waiting:
                account.used = max(account.used, floor)
            self._arrived += 1
            account.add(item, self._arrived)
            self._size += 1

    def renew(self, tenant: str, share: Share) -> None:
        """Another share, also for requests that wait; no effect on a tenant without requests."""
        account = self._active.get(tenant)
        if account is not None:
            self._unclaimed = False
            self._set_share(account, share)

    def candidates(self) -> Iterator[T]:
        """The waiting requests that may run, in the order in which to serve them now."""
        yield from self._front
        accounts = [account for account in self._active.values() if account.may_run]
        if accounts:
            first = min(accounts, key=_Account.rank)
            yield from first.ordered()
            accounts.remove(first)
            for account in sorted(accounts, key=_Account.rank):
                yield from account.ordered()

    def claims(self, slots: int) -> Iterator[tuple[T, list[str]]]:
        """Requests to serve at once, and the tenants of which one is to give up a slot for it.

        In the order in which to try them. A request is of a tenant that would still run no more
        than its share of the slots with it; the other tenants run more than their own shares.
        """
        if self._unclaimed or self._front or self._size == 0 or len(self._active) < 2:
            return
        per_weight = slots / self._weights
        # What each tenant runs above its share, which may be negative.
        excess = {
            tenant: account.running - per_weight * account.weight
            for tenant, account in self._active.items()
        }
        poor = [
            account
            for tenant, account in self._active.items()
            if account.may_run and excess[tenant] <= _ROUNDING - 1
        ]
        rich = [tenant for tenant, above in excess.items() if above >= 1 - _ROUNDING]
        self._unclaimed = not (poor and rich)
        if self._unclaimed:
            return
        rich.sort(key=lambda tenant: (excess[tenant], tenant), reverse=True)
        for account in sorted(poor, key=_Account.rank):
            for item in islice(account.ordered(), CLAIMANTS):
                yield item, rich

    def take(self, item: T) -> None:
        """Take a request out of the queue to serve it."""
        self._unclaimed = False
        self._size -= 1
        account = self._active[item.tenant]
        if account.discard(item):
            account.running += 1
            self._level = max(self._level, account.used)
        else:
            self._front.remove(item)

    def pause(self, item: T) -> None:
        """Put a running request back, before the waiting ones of its tenant and priority."""
        self._unclaimed = False
        account = self._active[item.tenant]
        account.running -= 1
        account.add(item, 0)
        account.waiting[item.priority].move_to_end(item, last=False)
        self._size += 1

    def put_back(self, item: T) -> None:
        """Put a preempted request back at the front of all."""
        self._front.appendleft(item)
        self._size += 1

    def rotate(self, item: T) -> None:
        """Move an unfinished request behind the others of its tenant."""
        self._active[item.tenant].waiting[item.priority].move_to_end(item)

    def charge(self, tenant: str, tokens: float) -> None:
        """Count the tokens computed for a tenant that has requests."""
        account = self._active[tenant]
        account.used += tokens / account.weight
        self._level += tokens / self._weights

    def leave(self, item: T) -> None:
        """Remove a request that has ended, waiting or running."""
        self._unclaimed = False
        account = self._active[item.tenant]
        if account.discard(item):
            self._size -= 1
        else:
            account.running -= 1
            if item in self._front:
                self._front.remove(item)
                self._size -= 1
        if not account.waiting and not account.running:
            self._deactivate(item.tenant, account)

    def _set_share(self, account: _Account[T], share: Share) -> None:
        if account.share is not share:
            self._weights += share.weight - account.weight
            account.share = share
            account.weight = share.weight

    def _floor(self) -> float:
        """The counter of a returning tenant: the level, within the waiting tenants' counters."""
        waiting = [account.used for account in self._active.values() if account.waiting]
        return max(min(waiting), min(self._level, max(waiting))) if waiting else self._level

    def _activate(self, tenant: str, share: Share) -> _Account[T]:
        account: _Account[T] = _Account(self._idle.pop(tenant, 0.0), share)
        self._active[tenant] = account
        self._weights += share.weight
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
