"""Frames: bytes to frames or a typed error, and frames to bytes (RFC 9113 sections 4, 6). No I/O.

Invariant: the result depends on the bytes and not on how they were split into reads. A frame that
the reader gives has a valid size, padding and kind of stream. A header block comes as one HEADERS
frame, whose payload is the whole block: no other frame may stand within it.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from cllm.http.http2.errors import ErrorCode, Http2ConnectionError, Http2StreamError

# Section 6
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

# Section 6.5.2
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

PREFACE_LINE = b"PRI * HTTP/2.0\r\n"  # shows that a client has prior knowledge (section 3.3)
PREFACE = PREFACE_LINE + b"\r\nSM\r\n\r\n"  # section 3.4

FRAME_SIZE = 16 * 1024  # bytes of a payload; MAX_FRAME_SIZE's initial value, which the server keeps
MAX_STREAM = MAX_WINDOW = 2**31 - 1

HEAD_SIZE = 9
_HEAD = Struct(">BHBBI")  # 24 bits of length, type, flags, stream
_SETTING = Struct(">HI")
_UINT32 = Struct(">I")
_UINT64 = Struct(">II")

# A head in this many further frames is an attack, since 16 KiB fit in each (CVE-2024-27316).
MAX_CONTINUATIONS = 8

# (kind, flags, stream, payload without padding and priority, size that counts for flow control)
Frame = tuple[int, int, int, bytes, int]

# The size of the payload by kind, where it is fixed
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_ON_STREAM = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION))
_ON_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))


class FrameReader:
    """The frames of one client, from its connection preface on.

    After `feed`, call `next_frame` until it returns None. An Http2ConnectionError ends the stream
    of frames; after an Http2StreamError it continues.
    """

    __slots__ = (
        "_block", "_buffer", "_continuations", "_flags", "_max_block", "_position", "_preface",
        "_stream", "started",
    )  # fmt: skip

    def __init__(self, max_block: int) -> None:
        """max_block: bytes of a header block as it is sent."""
        self._max_block = max_block
        self._buffer = b""
        self._position = 0
        self._preface = True  # it is still to come
        self.started = False  # the first SETTINGS has come
        # The header block that is not complete
        self._stream = 0  # 0: none
        self._flags = 0
        self._block = bytearray()
        self._continuations = 0

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        if self._position == len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._position :] + data
        self._position = 0

    @property
    def incomplete(self) -> bool:
        """A frame, a header block or the preface has begun and is not complete."""
        return self._position < len(self._buffer) or self._stream > 0 or not self.started

    @property
    def partial_data(self) -> tuple[int, int]:
        """Of a DATA frame that is not complete: (stream, bytes received); else (0, 0)."""
        size = len(self._buffer) - self._position
        if size < HEAD_SIZE or self._preface or self._stream:
            return 0, 0
        _, _, kind, _, stream = _HEAD.unpack_from(self._buffer, self._position)
        return (stream & MAX_STREAM, size - HEAD_SIZE) if kind == DATA else (0, 0)

    def next_frame(self) -> Frame | None:
        """The next frame, or None if bytes are missing.

        Raises Http2ConnectionError, Http2StreamError.
        """
        if self._preface:
            self._read_preface()
            if self._preface:
                return None
        while True:
            buffer, start = self._buffer, self._position
            begin = start + HEAD_SIZE
            if len(buffer) < begin:
                return None
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, start)
            size = high << 16 | low
            if size > FRAME_SIZE:  # section 4.2; the rest of it is not read
                raise _size_error(f"a frame has {size} bytes; the limit is {FRAME_SIZE}")
            end = begin + size
            if len(buffer) < end:
                return None
            self._position = end
            stream &= MAX_STREAM  # section 4.1: the reserved bit is ignored
            payload = buffer[begin:end]
            if not self.started:
                if kind != SETTINGS or flags & ACK:  # section 3.4
                    raise _protocol_error("the first frame is not SETTINGS")
                self.started = True
            if self._stream:
                if kind != CONTINUATION or stream != self._stream:
                    raise _protocol_error("another frame stands within a header block")
                if self._continue(flags, payload):
                    return self._whole_block()
            elif kind == HEADERS:
                if not stream:
                    raise _protocol_error("HEADERS on stream 0")
                block = _unpadded(flags, payload)
                if flags & HAS_PRIORITY:
                    block = _without_priority(stream, block)
                if len(block) > self._max_block:
                    raise self._too_large()
                if flags & END_HEADERS:
                    return kind, flags, stream, block, size
                self._stream, self._flags = stream, flags
                self._block += block
                self._continuations = 0
            else:
                return kind, flags, stream, _checked(kind, flags, stream, payload), size

    def _read_preface(self) -> None:
        got = self._buffer[: len(PREFACE)]
        if not PREFACE.startswith(got):
            raise _protocol_error("the connection preface is not that of HTTP/2")
        if len(got) == len(PREFACE):
            self._preface = False
            self._position = len(PREFACE)

    def _continue(self, flags: int, payload: bytes) -> bool:
        """Append a CONTINUATION; whether the block is complete."""
        self._continuations += 1
        if self._continuations > MAX_CONTINUATIONS:
            raise Http2ConnectionError(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"a header block has more than {MAX_CONTINUATIONS} CONTINUATION frames",
                "continuations",
            )
        if len(self._block) + len(payload) > self._max_block:
            raise self._too_large()
        self._block += payload
        return bool(flags & END_HEADERS)

    def _whole_block(self) -> Frame:
        block, self._block = bytes(self._block), bytearray()
        stream, self._stream = self._stream, 0
        return HEADERS, self._flags | END_HEADERS, stream, block, len(block)

    def _too_large(self) -> Http2ConnectionError:
        return Http2ConnectionError(
            ErrorCode.ENHANCE_YOUR_CALM,
            f"a header block is larger than {self._max_block} bytes",
            "head",
        )


def _checked(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """The payload, without its padding, of a frame that is valid by itself."""
    if kind in _ON_STREAM:
        if not stream:
            raise _protocol_error(f"a frame of type {kind} on stream 0")
    elif kind in _ON_CONNECTION and stream:
        raise _protocol_error(f"a frame of type {kind} on stream {stream}")
    size = _SIZES.get(kind)
    if size is not None and len(payload) != size:
        text = f"a frame of type {kind} has {len(payload)} bytes instead of {size}"
        if kind == PRIORITY:  # section 6.3
            raise Http2StreamError(stream, ErrorCode.FRAME_SIZE_ERROR, text)
        raise _size_error(text)
    if kind == DATA:
        return _unpadded(flags, payload)
    if kind == WINDOW_UPDATE:
        if not uint31(payload):  # section 6.9
            text = "a WINDOW_UPDATE of 0"
            if stream:
                raise Http2StreamError(stream, ErrorCode.PROTOCOL_ERROR, text)
            raise _protocol_error(text)
    elif kind == SETTINGS:
        if len(payload) % _SETTING.size or (flags & ACK and payload):  # section 6.5
            raise _size_error(f"a SETTINGS frame has {len(payload)} bytes")
    elif kind == GOAWAY:
        if len(payload) < 8:
            raise _size_error(f"a GOAWAY frame has {len(payload)} bytes")
    elif kind == PRIORITY:
        _without_priority(stream, payload)
    elif kind == CONTINUATION:  # section 6.10
        raise _protocol_error("a CONTINUATION that continues no header block")
    elif kind == PUSH_PROMISE:  # section 8.4
        raise _protocol_error("a client cannot push")
    return payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    """Section 6.1"""
    if not flags & PADDED:
        return payload
    if not payload:
        raise _size_error("a padded frame has no length of its padding")
    size = len(payload) - payload[0]
    if size < 1:
        raise _protocol_error("the padding is as long as the frame or longer")
    return payload[1:size]


def _without_priority(stream: int, payload: bytes) -> bytes:
    """What follows the priority, which the server ignores (section 5.3.2).

    A stream that depends on itself was an error in RFC 7540 (section 5.3.1), and remains one here.
    """
    if len(payload) < 5:
        raise _size_error("a HEADERS frame is too short for its priority")
    if uint31(payload) == stream:
        raise _protocol_error(f"stream {stream} depends on itself")
    return payload[5:]


def _protocol_error(text: str) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCode.PROTOCOL_ERROR, text)


def _size_error(text: str) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, text)


def uint31(payload: bytes) -> int:
    """The first four bytes as a number, without the reserved bit."""
    return int.from_bytes(payload[:4], "big") & MAX_STREAM


def uint32(payload: bytes) -> int:
    """The first four bytes as a number."""
    return int.from_bytes(payload[:4], "big")


def settings_in(payload: bytes) -> list[tuple[int, int]]:
    """(identifier, value) of a SETTINGS frame, in order."""
    return list(_SETTING.iter_unpack(payload))


# Writing


def frame_head(kind: int, flags: int, stream: int, size: int) -> bytes:
    """The nine bytes before a payload."""
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream)


def headers(stream: int, block: bytes, *, ended: bool, most: int = FRAME_SIZE) -> bytes:
    """A header block in frames with payloads of at most `most` bytes."""
    flags = END_STREAM if ended else 0
    if len(block) <= most:
        return frame_head(HEADERS, flags | END_HEADERS, stream, len(block)) + block
    parts = [frame_head(HEADERS, flags, stream, most), block[:most]]
    for at in range(most, len(block), most):
        part = block[at : at + most]
        last = END_HEADERS if at + most >= len(block) else 0
        parts += (frame_head(CONTINUATION, last, stream, len(part)), part)
    return b"".join(parts)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_SETTING.pack(*pair) for pair in values)
    return frame_head(SETTINGS, 0, 0, len(payload)) + payload


SETTINGS_ACK = frame_head(SETTINGS, ACK, 0, 0)


def ping(payload: bytes, *, ack: bool) -> bytes:
    """A PING frame with its eight bytes."""
    return frame_head(PING, ACK if ack else 0, 0, 8) + payload


def rst_stream(stream: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame_head(RST_STREAM, 0, stream, 4) + _UINT32.pack(code)


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame_head(WINDOW_UPDATE, 0, stream, 4) + _UINT32.pack(increment)


def goaway(last: int, code: int, text: str = "") -> bytes:
    """A GOAWAY frame; the text is for a person who debugs the client."""
    debug = text.encode("ascii", "replace")
    return frame_head(GOAWAY, 0, 0, 8 + len(debug)) + _UINT64.pack(last, code) + debug
