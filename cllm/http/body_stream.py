"""Body streams from one producer (any thread) to one connection: writing, wake-ups, ends.

The rule: a stream's callbacks run outside its lock, and a consumer that calls `take()` after each
wake-up sees every byte and the end. `wake` is called once when the stream turns from empty to
non-empty (or ends) and not again before the next `take()`, except that a cancellation always wakes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from cllm.http.errors import StreamClosed
from cllm.http.report import report_failure

# An empty line, whichever end-of-line is used (WHATWG HTML section 9.2.5). A CRLF that is cut after
# its CR does not count: its LF may follow.
_EVENT_ENDS = (b"\n\n", b"\r\r", b"\n\r\n")

HIGH_WATER = 1024 * 1024  # bytes; the connection sets its own from ServerConfig.high_water

_log = logging.getLogger("cllm.http")


class BodyStream:
    """A body written piece by piece.

    Producer, any thread: `write`, `close`, `on_cancel`, `cancelled`.
    Consumer, the connection: `attach`, then `take` after each wake-up, and look at `cancelled`
    before `finished`: a cancelled stream is truncated, so its connection must be aborted, and the
    body must not be ended normally.

    Subclasses may pull instead: override `take`, `finished` and `cancel`.
    """

    __slots__ = (
        "__weakref__", "_between", "_cancel_callbacks", "_chunks", "_closed", "_lock", "_notified",
        "_pending", "_wake", "cancel_reason", "high_water", "ping", "room",
    )  # fmt: skip

    content_type: ClassVar[str] = "application/octet-stream"
    endless: ClassVar[bool] = False  # it ends as soon as the server stops, without a grace period

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._pending = 0  # bytes in _chunks
        self._closed = False
        self._notified = False
        self._wake: Callable[[], None] | None = None
        self._cancel_callbacks: list[Callable[[str], object]] = []
        self._between = True  # the data taken ends with a whole event; tracked if there is a ping
        self.cancel_reason: str | None = None
        self.high_water = HIGH_WATER
        # Where streams share a bound: whether this one may hold so many bytes next to the others
        self.room: Callable[[BodyStream, int], bool] | None = None
        # A whole event without content, sent while the stream is quiet so that proxies keep it
        # open; b"": no pings. HttpResponse.sse sets a comment.
        self.ping = b""

    # Producer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over bytes; never blocks. A bytearray or memoryview is copied.

        Raises StreamClosed once the stream is closed or cancelled, also when this write takes what
        is pending past `high_water`: the reader is too slow and the stream is cancelled. Raises
        TypeError for anything other than bytes.
        """
        if type(data) is not bytes:  # the common case first
            data = _octets(data)
        if not data:
            return
        wake = None
        with self._lock:
            if self._closed or self.cancel_reason is not None:
                raise StreamClosed(self.cancel_reason or "the stream was closed")
            overflow = self.overflows(self._pending + len(data))
            if not overflow:
                self._chunks.append(data)
                self._pending += len(data)
                wake = self._wake_once()
        if overflow:
            reason = f"the reader is too slow: more than {self.high_water} bytes would be pending"
            self.cancel(reason)
            raise StreamClosed(reason)
        if wake is not None:
            wake()

    def close(self) -> None:
        """End the data; written data is still sent. Closing again does nothing."""
        with self._lock:
            if self._closed or self.cancel_reason is not None:
                return
            self._closed = True
            self._cancel_callbacks.clear()
            wake = self._wake_once()
        if wake is not None:
            wake()

    def on_cancel(self, callback: Callable[[str], object]) -> None:
        """Call `callback(reason)` once when the stream is cancelled, at once if it already is."""
        with self._lock:
            if self.cancel_reason is None:
                if not self._closed:
                    self._cancel_callbacks.append(callback)
                return
        callback(self.cancel_reason)

    @property
    def cancelled(self) -> bool:
        return self.cancel_reason is not None

    # Consumer

    def attach(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, once there is something to take."""
        with self._lock:
            self._wake = wake
            pending = bool(self._chunks) or self._closed or self.cancel_reason is not None
            self._notified = pending
        if pending:
            wake()

    def take(self, most: int = 0) -> list[bytes]:
        """What was written since the last call; never blocks, raises nothing.

        most: as many whole pieces as reach so many bytes, 0 for all. While `more` is true after it,
        call again: no wake-up follows.
        """
        with self._lock:
            if most and self._pending > most:
                chunks = self._first_chunks(most)
            else:
                chunks, self._chunks = self._chunks, []
                self._pending = 0
            self._notified = bool(self._chunks)
        if chunks and self.ping:
            self._between = chunks[-1].endswith(_EVENT_ENDS)
        return chunks

    @property
    def pending(self) -> int:
        """Bytes that wait for `take`. Any thread."""
        return self._pending

    def overflows(self, pending: int) -> bool:
        """Whether so many bytes are more than may wait."""
        room = self.room
        return pending > self.high_water or (room is not None and not room(self, pending))

    @property
    def more(self) -> bool:
        """The last `take` left something that it could have given."""
        return bool(self._chunks)

    def _first_chunks(self, most: int) -> list[bytes]:
        """Under the lock."""
        count = size = 0
        while size < most:
            size += len(self._chunks[count])
            count += 1
        first = self._chunks[:count]
        del self._chunks[:count]
        self._pending -= size
        return first

    def take_ping(self) -> bytes:
        """What to send after an empty `take`: the ping, or b"" within an event."""
        return self.ping if self._between else b""

    @property
    def finished(self) -> bool:
        """Closed by the producer and drained; False for a cancelled stream."""
        return self._closed and not self._chunks and self.cancel_reason is None

    def cancel(self, reason: str) -> None:
        """Drop pending data and notify the producer; the first reason stays. Any thread."""
        with self._lock:
            if self.cancel_reason is not None or (self._closed and not self._chunks):
                return
            self.cancel_reason = reason
            self._chunks = []
            self._pending = 0
            callbacks, self._cancel_callbacks = self._cancel_callbacks, []
            # Even while a wake-up is pending: a connection whose socket is full did not act on it.
            self._notified = True
            wake = self._wake
        call_all(callbacks, reason)
        if wake is not None:
            wake()

    def end_event(self, reason: str) -> bytes:
        """A well-formed end for a stream that the server stops; b"" if the format has none."""
        return b""

    def _wake_once(self) -> Callable[[], None] | None:
        """Under the lock: what to call after it, or None if this wake-up is already pending."""
        if self._notified or self._wake is None:
            return None
        self._notified = True
        return self._wake


class IterableStream(BodyStream):
    """A body pulled from an iterator, one item for each `take()`.

    Items are bytes (sent as they are), text (UTF-8) or dicts (a line of JSON). The iterator runs on
    the worker that writes the response, and only when the socket has accepted the previous item: a
    slow reader slows the iterator. It may block; that holds one worker. It is closed when the
    stream is cancelled, and when it or the framing of an item fails.
    """

    __slots__ = ("_first", "_iterator", "_pulling")

    def __init__(self, items: Iterable[Any]) -> None:
        super().__init__()
        self._iterator: Iterator[Any] = iter(items)
        self._first: list[bytes] = []
        self._pulling = False

    def frame(self, item: Any) -> bytes:
        """One item as bytes of the body."""
        if isinstance(item, (bytes, bytearray, memoryview)):
            return bytes(item)
        if isinstance(item, str):
            return item.encode()
        return compact_json(item) + b"\n"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise TypeError("an IterableStream is fed by its iterator, not by write()")

    def prime(self) -> None:
        """Pull the first item now, so that an exception before it reaches the caller.

        A handler written as a generator can then still answer with an error status.
        """
        try:
            for item in self._iterator:
                self._first = [self.frame(item)]
                return
        except BaseException:
            self._close_unless_pulling()
            raise
        self.close()

    def attach(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._wake = wake
            self._notified = True
        wake()

    def take(self, most: int = 0) -> list[bytes]:
        """The next item, and a wake-up for the one after it; [] when the iterator has ended.

        An exception in the iterator is logged; the body ends with `end_event`, or is cancelled
        if it has none.
        """
        with self._lock:
            self._notified = False
            if self._closed or self.cancel_reason is not None:
                return []
            self._pulling = True
        chunks, ended = self._pull()
        with self._lock:
            self._pulling = False
            cancelled = self.cancel_reason is not None
            self._closed = ended and not cancelled
            if ended:
                self._cancel_callbacks.clear()
            wake = self._wake_once()
        if cancelled or ended:
            self._close_unless_pulling()
        if cancelled:
            return []
        if chunks and chunks[-1] and self.ping:
            self._between = chunks[-1].endswith(_EVENT_ENDS)
        if wake is not None:
            wake()
        return chunks

    def _pull(self) -> tuple[list[bytes], bool]:
        """(bytes, whether the iterator has ended)."""
        if self._first:
            first, self._first = self._first, []
            return first, False
        try:
            for item in self._iterator:
                return [self.frame(item)], False
        except BaseException:  # a SystemExit or asyncio's CancelledError too
            report_failure(_log, "a streaming handler failed after its response had begun")
            end = self.end_event("internal error")
            if end:
                return [end], True
            self.cancel("the iterator failed")
        return [], True

    def cancel(self, reason: str) -> None:
        super().cancel(reason)
        if self.cancelled:
            self._close_unless_pulling()

    def _close_unless_pulling(self) -> None:
        # A running generator cannot be closed; its `take` gets here when it has returned, and no
        # other `take` begins once the stream is cancelled.
        with self._lock:
            if self._pulling:
                return
        close = getattr(self._iterator, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                report_failure(_log, "a streaming handler failed while it was being closed")


def _octets(data: object) -> bytes:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"a body is bytes, not a {type(data).__name__}; encode text first")


def compact_json(value: Any) -> bytes:
    """JSON as UTF-8 without spaces and escapes; raises TypeError, ValueError as json.dumps does."""
    return _ENCODER.encode(value).encode()


# NaN and infinities are not JSON (RFC 8259 section 6).
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def call_all(callbacks: Iterable[Callable[[str], object]], reason: str) -> None:
    """Call each with the reason; one that fails is logged and does not affect the others."""
    for callback in callbacks:
        try:
            callback(reason)
        except Exception:
            report_failure(_log, "a cancel callback failed")
