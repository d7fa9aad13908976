"""Many clients that read server-sent events at once, and what each connection received.

One thread and one poll: many client threads would take the processor from the servers.
Responses are stored as they arrive and parsed afterwards.
"""

from __future__ import annotations

import re
import select
import socket
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .load import CHUNKED, ClientError, dechunk, response_end

_LAST_CHUNK = b"\r\n0\r\n\r\n"
_EVENT_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Call:
    """A request. leave_after: events after which its client disconnects; 0: it stays."""

    request: bytes
    leave_after: int = 0


Script = Sequence[Call]
"""Calls that follow one another on one connection."""


@dataclass(slots=True)
class Stream:
    """One response as it was received; times are `time.monotonic` seconds."""

    sent: float = 0.0
    raw: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[int, float]] = field(default_factory=list)  # (bytes so far, when)
    left: bool = False  # its client disconnected as planned
    broken: bool = False  # the server closed before the end
    cut: bool = False  # it was not over when the time was

    def pieces(self) -> list[float]:
        """When each event so far was received; of a response that may be incomplete."""
        raw = bytes(self.raw)
        found: list[float] = []
        for size, when in self.arrivals:
            found += [when] * (raw.count(b"data: ", 0, size) - len(found))
        return found

    def events(self) -> tuple[list[bytes], list[float]]:
        """The data of each event and when its last byte was received.

        Raises `ClientError` when the response is not a complete 200 text/event-stream.
        """
        raw = bytes(self.raw)
        head, separator, _rest = raw.partition(b"\r\n\r\n")
        if not raw.startswith(b"HTTP/1.1 200 ") or b"text/event-stream" not in head.lower():
            raise ClientError(f"not a stream: {raw[:300]!r}")
        if not raw.endswith(_LAST_CHUNK):
            raise ClientError(f"the stream is cut short: {raw[-100:]!r}")
        body, marks = dechunk(raw, len(head) + len(separator))
        chunk_ends = [end for end, _wire_end in marks]
        events, times, position = [], [], 0
        for end in _EVENT_END.finditer(body):
            block, position = body[position : end.start()], end.end()
            if block.startswith(b":"):
                continue
            if not block.startswith(b"data: "):
                raise ClientError(f"an event without data: {block[:100]!r}")
            events.append(block[6:])
            wire_end = marks[bisect_left(chunk_ends, position)][1]
            times.append(self.arrivals[bisect_left(self.arrivals, (wire_end, 0.0))][1])
        if position != len(body):
            raise ClientError(f"the last event is cut short: {body[position:][:100]!r}")
        return events, times


class _Client:
    """One connection and the scripts that give its calls; reconnects when necessary."""

    def __init__(self, host: str, port: int, waiting: deque[tuple[Script, list[Stream]]]) -> None:
        self._address = (host, port)
        self._waiting = waiting
        self._calls: deque[Call] = deque()
        self._results: list[Stream] = []
        self._call: Call | None = None
        self._stream = Stream()
        self.answered = False  # something was received, or there was nothing to send
        self._connect()

    def _connect(self) -> None:
        self.connection = socket.create_connection(self._address, 30)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._used = False  # a response was received on this connection

    def begin(self) -> bool:
        """Send the next call; False when there is none left."""
        while not self._calls:
            if not self._waiting:
                self.answered = True
                return False
            script, self._results = self._waiting.popleft()
            self._calls.extend(script)
        if self._stream.left or self._stream.broken:
            self._reconnect()
        self._call = self._calls.popleft()
        self._stream = Stream(sent=time.monotonic())
        self._results.append(self._stream)
        try:
            self.connection.sendall(self._call.request)
        except ConnectionError:
            self._ask_again()
        return True

    def _reconnect(self) -> None:
        self.close()
        self._connect()

    def _ask_again(self) -> None:
        """The server closed after the response before, which RFC 9112 section 9.3.1 allows."""
        assert self._call is not None
        self._reconnect()
        self.connection.sendall(self._call.request)

    def read(self) -> bool:
        """Read what was received; True when the response has ended, was cut or is abandoned."""
        assert self._call is not None
        stream, leave_after = self._stream, self._call.leave_after
        try:
            data = self.connection.recv(65536)
        except ConnectionError:
            data = b""
        if not data and not stream.raw and self._used:
            self._ask_again()
            return False
        self._used = True
        stream.raw += data
        stream.arrivals.append((len(stream.raw), time.monotonic()))
        self.answered = True
        stream.left = bool(leave_after) and stream.raw.count(b"data: ") >= leave_after
        stream.broken = not data
        return stream.left or stream.broken or _whole(stream.raw)

    def cut(self) -> None:
        self._stream.cut = True

    def close(self) -> None:
        self.connection.close()


def _whole(raw: bytearray) -> bool:
    # Events are JSON lines, in which CR LF is always escaped: only the last chunk matches.
    if raw.endswith(_LAST_CHUNK):
        return True
    head = raw.find(b"\r\n\r\n")
    return head >= 0 and not CHUNKED.search(raw, 0, head + 2) and response_end(raw) > 0


def read_streams(
    host: str,
    port: int,
    scripts: Sequence[Script],
    *,
    silence: float,
    progress: Callable[[], object],
    clients: int | None = None,
    late: Sequence[Script] = (),
    limit: float = float("inf"),
) -> list[list[Stream]]:
    """Work through the scripts, then `late`, and return each one's streams.

    A script's calls follow one another on one connection. `clients` connections (default: one for
    each script; all are open before anything is sent) take the next script when they are done with
    one. One more works on the late ones as soon as every other has received something.
    silence: seconds without a byte on any connection after which it raises `ClientError`.
    progress: called as each stream ends.
    limit: seconds after which the running streams are cut; what waits is not begun.
    """
    done: list[list[Stream]] = [[] for _ in (*scripts, *late)]
    waiting = deque(zip(scripts, done, strict=False))
    behind = deque(zip(late, done[len(scripts) :], strict=True))
    members: list[_Client] = []
    crowd: dict[int, _Client] = {}
    poller = select.poll()

    def watch(member: _Client) -> None:
        number = member.connection.fileno()
        crowd[number] = member
        poller.register(number, select.POLLIN)

    def begin(member: _Client) -> None:
        if member.begin():
            watch(member)

    until = time.monotonic() + limit
    try:
        for _ in range(clients or len(scripts)):
            members.append(_Client(host, port, waiting))
        for member in members.copy():
            begin(member)
        while crowd or late:
            if late and all(member.answered for member in members):
                late = ()
                members.append(_Client(host, port, behind))
                begin(members[-1])
            left = until - time.monotonic()
            ready = poller.poll(max(0.0, min(silence, left)) * 1e3)
            if time.monotonic() >= until:
                for member in crowd.values():
                    member.cut()
                break
            if not ready:
                raise ClientError(f"{len(crowd)} streams silent for {silence:g} s")
            for number, _event in ready:
                member = crowd.pop(number)
                poller.unregister(number)
                if member.read():
                    progress()
                    begin(member)
                else:
                    watch(member)
    finally:
        for member in members:
            member.close()
    return done
