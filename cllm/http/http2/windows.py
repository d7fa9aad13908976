"""Flow control in the direction of the server (RFC 9113 section 5.2).

The server takes in what it reads, and counts received bodies in its body memory, which is what
bounds them. The windows bound what is on its way. So DATA past a window is no error here, which
section 6.9 permits.
"""

from __future__ import annotations

# Bytes
STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 1024 * 1024


class ReceiveWindow:
    """What the client may still send, on a stream or on the connection."""

    __slots__ = ("_received", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._received = 0  # bytes that are not yet given back

    def receive(self, size: int) -> int:
        """Count received bytes: the increment to announce, 0 while less than half is used."""
        self._received += size
        if 2 * self._received < self._size:
            return 0
        increment, self._received = self._received, 0
        return increment
