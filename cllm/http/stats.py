"""Counters without locks: each worker writes its own, readers add them up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """The counters of one worker; only its thread writes them."""

    requests: int = 0
    bytes_sent: int = 0  # of response bodies
    clients_left: int = 0  # before their response was complete
    timeouts: int = 0  # of heads, bodies and writes
    by_status: dict[int, int] = field(default_factory=dict)
    http2_limits: dict[str, int] = field(default_factory=dict)  # passed by clients, by name

    def limit(self, name: str) -> None:
        """Count a limit of HTTP/2 that a client has passed."""
        self.http2_limits[name] = self.http2_limits.get(name, 0) + 1


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A server's counters since its start, and its state. Taken without a lock: each number is
    right, but they may be of slightly different times."""

    connections_open: int
    parked: int  # open, waiting for a client, a token or a deadline
    queue_depth: int  # ready to run, no worker yet
    workers: int
    workers_busy: int
    body_bytes: int  # of incomplete bodies
    accepted_total: int
    reclaimed_total: int  # idle connections closed at the limit, for new ones
    turned_away_total: int  # connections over the limit of their client
    requests_total: int
    bytes_sent_total: int
    clients_left_total: int
    timeouts_total: int
    responses_by_status: dict[int, int]
    http2_limits: dict[str, int]  # passed by clients, by name


def add_up(all_counters: Iterable[Counters]) -> Counters:
    """The sum of the workers' counters."""
    total = Counters()
    for counters in all_counters:
        total.requests += counters.requests
        total.bytes_sent += counters.bytes_sent
        total.clients_left += counters.clients_left
        total.timeouts += counters.timeouts
        # Copying a dict is atomic; iterating fails if its thread adds a status.
        for status, count in counters.by_status.copy().items():
            total.by_status[status] = total.by_status.get(status, 0) + count
        for name, count in counters.http2_limits.copy().items():
            total.http2_limits[name] = total.http2_limits.get(name, 0) + count
    return total
