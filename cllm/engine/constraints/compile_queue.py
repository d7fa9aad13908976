"""Constraints that wait to be compiled: the tenants who wait for them take turns.

A constraint that several tenants wait for is in the queue of each, and is compiled once. Pure
policy: no threads; the caller locks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from cllm.engine.constraints.constraint import Constraint
from cllm.engine.sharing import gives_way


class CompileQueue:
    """Up to `most` constraints that wait, and who waits for them and for those that were taken."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, OrderedDict[Constraint, None]] = OrderedDict()
        self._interest: dict[Constraint, Counter[str]] = {}  # of all that are not done
        self._taken: set[Constraint] = set()

    def __len__(self) -> int:
        """Number of constraints that wait."""
        return len(self._interest) - len(self._taken)

    def room_for(self, tenant: str) -> Constraint | None:
        """Make room for one more: the constraint that gave way, None if there was room.

        It is the newest of the tenant with the most, if no other waits for it. Raises IndexError
        if it would be the new one itself.
        """
        if len(self) < self._most:
            return None
        yielding = gives_way(self._waiting, tenant)
        if yielding != tenant:
            for constraint in reversed(self._waiting[yielding]):
                if self._interest[constraint].keys() == {yielding}:
                    self._dequeue(constraint)
                    del self._interest[constraint]
                    return constraint
        raise IndexError

    def join(self, constraint: Constraint, tenant: str) -> None:
        """One more request of a tenant waits for a constraint, which may be new."""
        if constraint not in self._taken:
            self._waiting.setdefault(tenant, OrderedDict())[constraint] = None
        self._interest.setdefault(constraint, Counter())[tenant] += 1

    def leave(self, constraint: Constraint, tenant: str) -> bool:
        """A request waits no longer; whether no request does. One that still waits leaves then."""
        interest = self._interest.get(constraint)
        if interest is None or not interest[tenant]:
            return False
        interest[tenant] -= 1
        if interest[tenant]:
            return False
        del interest[tenant]
        if constraint not in self._taken:
            self._forget(constraint, tenant)
            if not interest:
                del self._interest[constraint]
        return not interest

    def take(self) -> Constraint:
        """The oldest of the tenant whose turn it is. Raises KeyError if there is none."""
        tenant = next(iter(self._waiting), None)
        if tenant is None:
            raise KeyError
        self._waiting.move_to_end(tenant)
        constraint = next(iter(self._waiting[tenant]))
        self._dequeue(constraint)
        self._taken.add(constraint)
        return constraint

    def done(self, constraint: Constraint) -> None:
        """Forget a constraint that was taken; nothing happens if it was not."""
        if constraint in self._taken:
            self._taken.remove(constraint)
            del self._interest[constraint]

    def _dequeue(self, constraint: Constraint) -> None:
        for tenant in self._interest[constraint]:
            self._forget(constraint, tenant)

    def _forget(self, constraint: Constraint, tenant: str) -> None:
        del self._waiting[tenant][constraint]
        if not self._waiting[tenant]:
            del self._waiting[tenant]
