"""What a worker lends to the connection that it runs, so that a parked connection holds none."""

from __future__ import annotations

from collections.abc import Sized

from cllm.http.stats import Counters

# One read takes at most this many bytes.
RECEIVE_BUFFER = 64 * 1024

# With at most so many others that wait, a response leaves at once.
FEW = 8


class Workspace:
    """One worker's; used by its thread only.

    others: not empty while other connections wait for this worker's turn to end.
    """

    __slots__ = ("buffer", "counters", "others")

    def __init__(self, others: Sized) -> None:
        self.others = others
        self.buffer = memoryview(bytearray(RECEIVE_BUFFER))
        self.counters = Counters()
