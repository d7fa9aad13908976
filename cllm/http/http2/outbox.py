"""What one HTTP/2 connection sends: frames in order, and the window of the connection.

Frames are only ever appended: a write that the transport has begun must be repeated with the same
bytes. Data becomes frames only while the outbox is nearly empty, so that a frame of another stream,
or an answer to a control frame, waits behind FULL bytes at most.
"""

from __future__ import annotations

from collections.abc import Sequence

from cllm.http.connection import NEVER, Connection
from cllm.http.http2.frames import DATA, END_STREAM, frame_head, headers
from cllm.http.limits import ServerConfig
from cllm.http.outgoing import Outgoing
from cllm.http.transport import Buffer

FULL = 64 * 1024  # bytes: no more data until some has left

# Heads and answers to control frames go into a full outbox too. Past this the connection is not
# read, so that a client that sends and does not read takes no more memory.
NO_MORE = 128 * 1024  # bytes

DEFAULT_WINDOW = 65535  # RFC 9113 section 6.9.2


class Outbox:
    """One connection's; by its owner.

    window, initial_window: what the client's settings and updates allow, in bytes.
    held: bytes of responses that wait for a window. data_sent: bytes in DATA frames so far.
    taken: bytes that were ever put in.
    write_by: time.monotonic(), the deadline of what is in the outbox.
    """

    __slots__ = (
        "_outgoing", "_sent_frames", "data_sent", "held", "initial_window", "table_update",
        "taken", "window", "write_by",
    )  # fmt: skip

    def __init__(self, config: ServerConfig) -> None:
        self._outgoing = Outgoing(config)
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW
        self.held = 0
        self.data_sent = self.taken = 0
        self._sent_frames = 0  # of responses
        self.table_update = b""  # goes before the next header block
        self.write_by = NEVER

    @property
    def size(self) -> int:
        """Bytes that wait for the socket."""
        return self._outgoing.size

    @property
    def left(self) -> int:
        """Bytes that have left, of those that were ever put in."""
        return self.taken - self._outgoing.size

    @property
    def room(self) -> int:
        """Bytes of data that may become frames now; not positive: none."""
        return min(self.window, FULL - self.size)

    def put(self, frame: bytes) -> None:
        """Append a frame, or several."""
        self._outgoing.append((frame,), len(frame))
        self.taken += len(frame)

    def headers(self, stream: int, block: bytes, *, ended: bool) -> bytes:
        """The frames of the next header block."""
        if self.table_update:
            block, self.table_update = self.table_update + block, b""
        return headers(stream, block, ended=ended)

    def put_data(self, stream: int, pieces: Sequence[Buffer], size: int, *, ended: bool) -> None:
        """Append a DATA frame of `size` bytes, which the windows allow."""
        head = frame_head(DATA, END_STREAM if ended else 0, stream, size)
        self._outgoing.append((head, *pieces), len(head) + size)
        self.taken += len(head) + size
        self.window -= size
        self.data_sent += size
        self._sent_frames += 1

    def put_response(self, frame: bytes, data: int) -> None:
        """Append a response, or its head; data: bytes of DATA in it, which the windows allow."""
        self.put(frame)
        self.window -= data
        self.data_sent += data
        self._sent_frames += 1

    def take_sent_frames(self) -> int:
        """How many frames of responses were put in since the last call."""
        count, self._sent_frames = self._sent_frames, 0
        return count

    def flush(self, connection: Connection) -> int:
        """As `Outgoing.flush`; keeps its deadline in `write_by`."""
        if not self.size:
            return 0
        connection.deadline = self.write_by
        interest = self._outgoing.flush(connection)
        self.write_by = connection.deadline
        return interest

    def progressed(self, connection: Connection) -> bool:
        """At the deadline: whether enough has left, and there is a new deadline."""
        if not self._outgoing.progressed(connection):
            return False
        self.write_by = connection.deadline
        return True
