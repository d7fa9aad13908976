"""The request state machine: bytes in, requests or a typed error out (RFC 9110, RFC 9112). No I/O.

Invariant: the result depends on the bytes and not on how they were split into reads. Of two errors
the one that comes first in the stream is reported; a limit is exceeded at the byte that exceeds it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from cllm.http.errors import ProtocolError
from cllm.http.head import (
    CRLF,
    MAX_REMEMBERED_SIZE,
    NOT_IN_HEAD,
    QUOTED_STRING,
    TOKEN,
    Head,
    check_section,
    parse_fields,
    parse_head,
    remember,
    remembered_heads,
)
from cllm.http.limits import Limits
from cllm.http.request import HttpRequest

# RFC 9112 section 2.2 asks for "at least one"; old clients send two after a body.
MAX_EMPTY_LINES = 2
CR = 13

RELEASE = 64 * 1024  # consumed bytes that justify a copy of what follows them

# RFC 9112 section 7.1.1, with the blanks that a recipient has to accept
_CHUNK_EXT = f"(?:[ \t]*;[ \t]*{TOKEN}(?:[ \t]*=[ \t]*(?:{TOKEN}|{QUOTED_STRING}))?)*"
# RFC 9112 section 7.1: chunk-size [ chunk-ext ]. Sixteen digits hold every 64-bit size.
CHUNK_SIZE = re.compile(f"([0-9A-Fa-f]{{1,16}}){_CHUNK_EXT}".encode("latin-1"))
# Bytes of chunk framing allowed before extensions must stay in proportion to the data.
CHUNK_OVERHEAD = 16 * 1024
# A chunk costs about 2 µs whatever its size. The running sum of (SMALL_CHUNK - size), at least 0,
# may not exceed SMALL_CHUNKS: 33 000 chunks of one byte (70 ms), or 300 kB in chunks of 8.
SMALL_CHUNK = 64  # bytes
SMALL_CHUNKS = 2 * 1024 * 1024  # bytes


class ParserState(enum.Enum):
    """The position in the stream after the last `next_request()`."""

    IDLE = "idle"  # between requests, nothing buffered
    HEAD = "head"  # part of a head, or a further request not yet taken
    BODY = "body"  # a head is read and its body is not complete


class _Step(enum.Enum):
    """What the parser reads next."""

    HEAD = enum.auto()
    LENGTH_BODY = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK_DATA = enum.auto()
    CHUNK_END = enum.auto()
    TRAILERS = enum.auto()
    DONE = enum.auto()


_HEAD = _Step.HEAD  # an enum's members are slow to look up in Python 3.11


class RequestParser:
    """Turns one connection's bytes into requests; pipelined ones one at a time.

    After `feed`, call `next_request` until it returns None. Once it has raised ProtocolError it
    always raises that error: the stream has no next request.
    """

    __slots__ = (
        "_body", "_buffer", "_continue", "_empty_lines", "_error", "_heads", "_limits",
        "_overhead", "_position", "_remaining", "_scan", "_small", "_step", "head",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._heads = remembered_heads(limits)
        # Received and not yet consumed: `_buffer` from `_position`. It is the received bytes object
        # itself while each read ends at the end of a request, and a bytearray otherwise.
        self._buffer: bytes | bytearray = b""
        self._position = 0
        self._scan = 0  # no line ends before this index
        self._step = _HEAD
        self._empty_lines = 0
        self.head: Head | None = None  # of the request whose body is not complete
        self._body = bytearray()  # decoded chunks
        self._remaining = 0  # bytes of the length-delimited body, or of this chunk
        self._overhead = 0  # see CHUNK_OVERHEAD
        self._small = 0  # see SMALL_CHUNKS
        self._continue = False
        self._error: ProtocolError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take received bytes. A `bytes` object is kept, not copied, if nothing is buffered."""
        if self._position == len(self._buffer):
            self._buffer = bytes(data)  # the same object if it is bytes
            self._position = self._scan = 0
            return
        buffer = self._buffer
        if isinstance(buffer, bytes):
            buffer = self._buffer = bytearray(memoryview(buffer)[self._position :])
        elif self._position:
            del buffer[: self._position]
        self._scan = max(self._scan - self._position, 0)
        self._position = 0
        buffer += data

    def known(self, data: bytes) -> HttpRequest | None:
        """The request that `data` is, in place of `feed` and `next_request`; None: feed it.

        Only a head that is remembered, without a body, while nothing is buffered: most requests
        are of this kind.
        """
        if self._buffer or self._step is not _HEAD or len(data) > MAX_REMEMBERED_SIZE:
            return None
        head = self._heads.get(data)
        if head is None or head.length or head.chunked or self._error is not None:
            return None
        self._empty_lines = 0
        return head.request()

    def next_request(self) -> HttpRequest | None:
        """The next complete request, or None if bytes are missing.

        The connection fills in `client` and `id`. Raises ProtocolError.
        """
        if self._error is not None:
            raise self._error
        if self._position == len(self._buffer):
            return None
        try:
            if self._step is _HEAD:
                head = self._read_head()
                if head is None:
                    return None
                if not (head.length or head.chunked):
                    return self._finish(head, b"")
                self._begin_body(head)
            return self._read_body()
        except ProtocolError as error:
            in_body = self.head
            if in_body is None:
                error.to_head = self.begins_with(b"HEAD ")
            else:
                error.to_head = in_body.method == "HEAD"
            self._error = error
            self.drop()
            raise

    @property
    def state(self) -> ParserState:
        if self._step is not _HEAD:
            return ParserState.BODY
        return ParserState.IDLE if self._position == len(self._buffer) else ParserState.HEAD

    @property
    def wants_continue(self) -> bool:
        """The client waits for 100 (Continue) before it sends more (RFC 9110 section 10.1.1)."""
        return self._continue

    def continue_sent(self) -> None:
        """The 100 response was written."""
        self._continue = False

    def begins_with(self, start: bytes) -> bool:
        """Whether what is buffered begins with these bytes."""
        return self._buffer.startswith(start, self._position)

    def release(self) -> bytes:
        """What is buffered, for another protocol; the parser keeps nothing."""
        data = bytes(self._buffer[self._position :])
        self.drop()
        return data

    def drop(self) -> None:
        """Discard the buffer: the stream ends here."""
        self._buffer = b""
        self._position = self._scan = 0
        self._body = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes received and not yet returned; only `feed` increases it."""
        return len(self._buffer) - self._position + len(self._body)

    # Heads

    def _read_head(self) -> Head | None:
        buffer = self._buffer
        while buffer.startswith(CRLF, self._position):
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise ProtocolError(
                    400, f"more than {MAX_EMPTY_LINES} empty lines before a request"
                )
            self._position += 2
        start = self._position
        end = buffer.find(b"\r\n\r\n", max(self._scan - 3, start))
        if end < 0:
            self._check_head(len(buffer), complete=False)
            return None
        raw = bytes(buffer[start : end + 4])
        head = self._heads.get(raw)
        if head is None:
            self._check_head(end + 4, complete=True)
            head = parse_head(raw[:-2], self._limits)
            remember(self._heads, raw, head)
        if head.length > self._limits.body:
            raise self._body_too_large()
        self._position = self._scan = end + 4
        self._empty_lines = 0
        return head

    def _check_head(self, stop: int, *, complete: bool) -> None:
        """Refuse a head at its first unacceptable byte; note the bytes checked."""
        buffer, start, limits = self._buffer, self._position, self._limits
        if buffer.startswith(b"\n", start):
            # The byte before belongs to the last body, so a CR there does not count.
            raise ProtocolError(400, "the head has a bare LF")
        too_long = []
        line_stop = start + limits.request_line
        if (
            stop > line_stop
            and self._scan <= line_stop
            and buffer.find(CRLF, start, line_stop + 2) < 0
            and not (stop == line_stop + 1 and buffer[line_stop] == CR)
        ):
            message = f"the request line is longer than {limits.request_line} bytes"
            too_long.append((line_stop, ProtocolError(414, message)))
        if stop - start > limits.head:
            message = f"the head is longer than {limits.head} bytes"
            too_long.append((start + limits.head, ProtocolError(431, message)))
        self._check(stop, complete, too_long)

    def _check(self, stop: int, complete: bool, too_long: list[tuple[int, ProtocolError]]) -> None:
        # Only the next byte shows whether a CR at the end is a bare one.
        if not complete and self._buffer[stop - 1] == CR:
            stop -= 1
        check_section(self._buffer, max(self._scan, self._position), stop, too_long)
        self._scan = stop

    # Bodies

    def _begin_body(self, head: Head) -> None:
        self.head = head
        self._continue = head.expects_continue
        if head.chunked:
            self._overhead = self._small = 0
            self._step = _Step.CHUNK_SIZE
        else:
            self._remaining = head.length
            self._step = _Step.LENGTH_BODY

    def _read_body(self) -> HttpRequest | None:
        if self._position < len(self._buffer):
            # RFC 9110 section 10.1.1: no 100 is needed if content is already arriving.
            self._continue = False
        if self._step is _Step.LENGTH_BODY:
            end = self._position + self._remaining
            if len(self._buffer) < end:
                return None
            body = bytes(self._buffer[self._position : end])
            self._position = self._scan = end
        else:
            while self._step is not _Step.DONE:
                if not _CHUNK_STEPS[self._step](self):
                    return None
            body = bytes(self._body)
            self._body = bytearray()
        assert self.head is not None
        return self._finish(self.head, body)

    def _finish(self, head: Head, body: bytes) -> HttpRequest:
        if self._position == len(self._buffer):
            self._buffer = b""  # an idle connection keeps none of its last request
            self._position = self._scan = 0
        elif self._position >= RELEASE and self._position > len(self._buffer) // 2:
            # Nor does one with a pipelined request. The copy is smaller than what was consumed.
            self._buffer = bytes(memoryview(self._buffer)[self._position :])
            self._position = self._scan = 0
        self.head = None
        self._step = _HEAD
        return head.request(body)

    def _read_chunk_size(self) -> bool:
        buffer, start, limit = self._buffer, self._position, self._limits.chunk_line
        end = buffer.find(CRLF, max(self._scan, start))
        if end < 0:
            length = len(buffer) - start
            if length and buffer[-1] == CR:
                length -= 1
            found = NOT_IN_HEAD.search(buffer, max(self._scan, start), start + length)
            if length > limit or found is not None:
                raise self._bad_chunk_size()
            self._scan = start + length
            return False
        line = CHUNK_SIZE.fullmatch(buffer, start, end)
        if line is None or end - start > limit:
            raise self._bad_chunk_size()
        size = int(line[1], 16)
        if len(self._body) + size > self._limits.body:
            raise self._body_too_large()
        # A size line costs up to 16 bytes, and extensions as much as the data they come with.
        self._overhead = max(self._overhead + (end - start) - 16 - size, 0)
        if self._overhead > CHUNK_OVERHEAD:
            raise ProtocolError(400, "the chunk extensions are larger than the body")
        self._small = max(self._small + SMALL_CHUNK - size, 0)
        if self._small > SMALL_CHUNKS:
            raise ProtocolError(
                400, f"the body comes in too many chunks of less than {SMALL_CHUNK} bytes"
            )
        self._position = self._scan = end + 2
        self._remaining = size
        self._step = _Step.CHUNK_DATA if size else _Step.TRAILERS
        return True

    def _read_chunk_data(self) -> bool:
        part = self._buffer[self._position : self._position + self._remaining]
        self._body += part
        self._position += len(part)
        self._remaining -= len(part)
        if self._remaining:
            return False
        self._step = _Step.CHUNK_END
        return True

    def _read_chunk_end(self) -> bool:
        end = bytes(self._buffer[self._position : self._position + 2])
        if not CRLF.startswith(end):
            raise ProtocolError(400, "a chunk is longer than its size says")
        if len(end) < 2:
            return False
        self._position = self._scan = self._position + 2
        self._step = _Step.CHUNK_SIZE
        return True

    def _read_trailers(self) -> bool:
        buffer, start, limit = self._buffer, self._position, self._limits.trailers
        if buffer.startswith(CRLF, start):
            self._position = self._scan = start + 2
            self._step = _Step.DONE
            return True
        end = buffer.find(b"\r\n\r\n", max(self._scan - 3, start))
        stop = len(buffer) if end < 0 else end + 4
        if stop == start or (stop == start + 1 and buffer[start] == CR):
            return False  # perhaps the empty line, which is not a trailer and passes no limit
        too_long = []
        if stop - start > limit:
            message = f"the trailers are longer than {limit} bytes"
            too_long.append((start + limit, ProtocolError(431, message)))
        self._check(stop, end >= 0, too_long)
        if end < 0:
            return False
        # RFC 9110 section 6.5.1: they may be dropped; the server uses none.
        parse_fields(buffer[start : end + 2].decode("latin-1"))
        self._position = self._scan = stop
        self._step = _Step.DONE
        return True

    def _bad_chunk_size(self) -> ProtocolError:
        # One text for both, so that it does not depend on which error is found first.
        limit = self._limits.chunk_line
        return ProtocolError(400, f"a chunk-size line is malformed or longer than {limit} bytes")

    def _body_too_large(self) -> ProtocolError:
        return ProtocolError(413, f"the body is larger than {self._limits.body} bytes")


_CHUNK_STEPS: dict[_Step, Callable[[RequestParser], bool]] = {
    _Step.CHUNK_SIZE: RequestParser._read_chunk_size,
    _Step.CHUNK_DATA: RequestParser._read_chunk_data,
    _Step.CHUNK_END: RequestParser._read_chunk_end,
    _Step.TRAILERS: RequestParser._read_trailers,
}
