"""Connection limits: which idle connection to close at the limit, how many a client may have."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections import deque
from collections.abc import Callable

from cllm.http.connection import Connection

# A connection that has waited this long for a request may be closed for a new one. Until then a
# client that has just connected can send its request, however many others connect.
MIN_IDLE = 1.0  # s

# Between two scans of the whole table: if few are idle, a scan finds few.
LOOK_INTERVAL = 0.1  # s


class IdleConnections:
    """Connections that wait for a request, nearest deadline first. By the acceptor.

    Nothing is recorded per request. A scan of the whole table makes a list, and later calls take
    from it, so that many new clients cost one scan for each list. The order stays right: a
    connection that is not in the list, or whose deadline has changed, began to wait after the scan,
    and the list is dropped before that one may be closed.
    """

    def __init__(self, connections: dict[int, Connection]) -> None:
        self._connections = connections
        self._listed: deque[tuple[float, Connection]] = deque()
        self.next_look = 0.0
        self._good_until = 0.0  # the list

    def found(self, now: float) -> bool:
        """Whether one can be closed; if not, the answer cannot change before `next_look`."""
        listed = self._listed
        if now > self._good_until:
            listed.clear()
        while listed and listed[0][1].deadline != listed[0][0]:
            listed.popleft()  # used or closed since the scan
        if not listed and now >= self.next_look:
            self._look(now)
        return bool(listed)

    def close_one(self, now: float) -> bool:
        """Close the one whose deadline is nearest; False if there is none."""
        while self.found(now):
            if self._listed.popleft()[1].close_if_idle():
                return True
        return False

    def _look(self, now: float) -> None:
        found = []
        next_look = now + MIN_IDLE
        for connection in list(self._connections.values()):
            deadline = connection.deadline
            since = connection.idle_since
            if since is None:
                continue
            if since + MIN_IDLE <= now:
                found.append((deadline, connection))
            else:
                next_look = min(next_look, since + MIN_IDLE)
        found.sort(key=lambda item: item[0])
        self._listed.extend(found)
        self.next_look = max(next_look, now + LOOK_INTERVAL)
        self._good_until = now + MIN_IDLE


class ClientCounts:
    """Open connections by client address; for IPv6 by /64 network, which belongs to one client."""

    def __init__(
        self,
        limit: int,
        *,
        with_loopback: bool,
        exempt: Callable[[str], bool] = lambda host: False,
    ) -> None:
        """exempt: whether an address is that of a proxy, behind which are many clients."""
        self._limit = limit  # 0: no limit
        self._exempt = exempt
        self._with_loopback = with_loopback
        self._open: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def enter(self, host: str) -> bool:
        """Count one more; False, and nothing counted, if the client is at its limit."""
        key = self._key(host)
        if key is None:
            return True
        with self._lock:
            count = self._open.get(key, 0)
            if count >= self._limit:
                return False
            self._open[key] = count + 1
        return True

    def leave(self, host: str) -> None:
        """A counted connection closed. Any thread."""
        key = self._key(host)
        if key is None:
            return
        with self._lock:
            count = self._open[key] - 1
            if count:
                self._open[key] = count
            else:
                del self._open[key]

    def __len__(self) -> int:
        """How many clients have a connection."""
        return len(self._open)

    def _key(self, host: str) -> bytes | None:
        """None: not limited."""
        if not self._limit or self._exempt(host):
            return None
        if not self._with_loopback and ipaddress.ip_address(host).is_loopback:
            return None
        if ":" in host:
            return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8]
        return socket.inet_aton(host)
