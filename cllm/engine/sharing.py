"""On which terms requests share an engine: shares of work, scopes of prefixes, who gives way."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant gets of the engine.

    weight: its share of the work relative to the other tenants', above 0.
    concurrent: requests that run at once; further ones wait. None: as many as there are slots.
    queued: requests that may wait while `concurrent` others run. None: as many as the queue holds.
    """

    weight: float = 1.0
    concurrent: int | None = None
    queued: int | None = None

    @property
    def most(self) -> int | None:
        """Requests that run or wait at the same time; None: no bound of its own."""
        if self.concurrent is None or self.queued is None:
            return None
        return self.concurrent + self.queued


EQUAL = Share()
"""The share of a tenant without limits."""


AdapterSet = tuple[tuple[int, float], ...]
"""LoRA adapters that apply together: ids in rising order and scales other than 0."""


class Scope(NamedTuple):
    """Whose prefixes a request may reuse: those of requests with an equal scope, and no others.

    owner: "": all requests without an owner; any other must mean the same after a restart.
    salt: divides the scope of an owner further.
    adapters: what the prefixes were computed with.
    """

    owner: str = ""
    salt: str = ""
    adapters: AdapterSet = ()

    @property
    def durable(self) -> bool:
        """Whether prefixes may be put on disk: adapters have numbers that a restart may change."""
        return not self.adapters


COMMON = Scope()
"""The scope of requests that share their prefixes with everyone."""


def gives_way(waiting: Mapping[str, Sized], newcomer: str) -> str:
    """The tenant whose newest request is refused when a request arrives at the limit.

    It is the tenant with the most waiting requests; in a tie that includes it, the newcomer's.
    """
    own = len(waiting.get(newcomer, ())) + 1
    most = max(waiting, key=lambda tenant: len(waiting[tenant]), default=newcomer)
    return most if len(waiting.get(most, ())) > own else newcomer
