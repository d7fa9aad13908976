"""The end of a connection whose client may still send: read on, so that it sees the response.

A close with unread bytes resets the connection, and the client may lose the response to the reset
(RFC 9112 section 9.6).
"""

from __future__ import annotations

from time import monotonic

from cllm.http.connection import AGAIN, DONE, Connection, Context
from cllm.http.poller import READ, WRITE
from cllm.http.transport import WANT_READ
from cllm.http.workspace import Workspace

TURN_READS = 16  # of the worker's receive buffer, before other connections get their turn

LINGER_BYTES = 1024 * 1024  # read and dropped at most


class Lingering:
    """Reads and discards until the client ends, has sent too much, or the deadline passes."""

    __slots__ = ("_context", "_dropped")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._dropped = 0

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        for _ in range(TURN_READS):
            count = connection.transport.read(workspace.buffer)
            if count < 0:
                return READ if count == WANT_READ else WRITE
            self._dropped += count
            if count == 0 or self._dropped > LINGER_BYTES:
                return DONE
        return AGAIN

    def attend(self, connection: Connection, workspace: Workspace) -> int:
        if connection.deadline <= monotonic() or self._context.ending:
            return DONE
        return self.advance(connection, workspace)

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        return None

    def idle_since(self, connection: Connection) -> None:
        return None

    def closed(self) -> None:
        return None


def linger(connection: Connection, workspace: Workspace, context: Context) -> int:
    """End this side and read on for a while; the last step of a protocol."""
    timeout = context.config.linger_timeout
    if not timeout:
        return DONE
    connection.transport.shut_write()
    connection.deadline = monotonic() + timeout
    lingering = Lingering(context)
    connection.become(lingering)
    return lingering.advance(connection, workspace)
