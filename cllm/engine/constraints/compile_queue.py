"""Constraints that wait to be compiled: the tenants who wait for them take turns.

A constraint that several tenants wait for is in the queue of each, and is compiled once. Pure
policy: no threads; the caller locks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from cllm.engine.constraints.constraint import Constraint
from cllm.engine.sharing import gives_way


class CompileQueue:
    """Up to `most` constraints."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, OrderedDict[Constraint, None]] = OrderedDict()
        self._interest: dict[Constraint, Counter[str]] = {}

    def __len__(self) -> int:
        return len(self._interest)

    def __contains__(self, constraint: object) -> bool:
        return constraint in self._interest

    def room_for(self, tenant: str) -> Constraint | None:
        """Make room for one more: the constraint that gave way, None if there was room.

        It is the newest of the tenant with the most, if no other waits for it. Raises IndexError
        if it would be the new one itself.
        """
        if len(self._interest) < self._most:
            return None
        yielding = gives_way(self._waiting, tenant)
        if yielding != tenant:
            for constraint in reversed(self._waiting[yielding]):
                if self._interest[constraint].keys() == {yielding}:
                    self._drop(constraint)
                    return constraint
        raise IndexError

    def join(self, constraint: Constraint, tenant: str) -> None:
        """One more request of a tenant waits for a constraint, which may be new."""
        self._waiting.setdefault(tenant, OrderedDict())[constraint] = None
        self._interest.setdefault(constraint, Counter())[tenant] += 1

    def leave(self, constraint: Constraint, tenant: str) -> bool:
        """A request waits no longer; whether the constraint has left with it."""
        interest = self._interest.get(constraint)
        if interest is None or not interest[tenant]:
            return False
        interest[tenant] -= 1
        if not interest[tenant]:
            del interest[tenant]
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
        self._drop(constraint)
        return constraint

    def _drop(self, constraint: Constraint) -> None:
        for tenant in self._interest.pop(constraint):
            self._forget(constraint, tenant)

    def _forget(self, constraint: Constraint, tenant: str) -> None:
        del self._waiting[tenant][constraint]
        if not self._waiting[tenant]:
            del self._waiting[tenant]
