"""Frames: any split gives the same ones; errors by section; a second opinion on the bytes."""

from __future__ import annotations

from typing import Any

import hyperframe.frame as other
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.http.http2 import frames
from cllm.http.http2.errors import ErrorCode, Http2ConnectionError, Http2StreamError
from cllm.http.http2.frames import Frame, FrameReader
from tests.http.http2.http2_wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    uint32,
)

MAX_BLOCK = 1000
START = PREFACE + frame(SETTINGS, 0, 0)


def read(data: bytes, size: int = 0) -> list[Frame]:
    """The frames of these bytes, fed in pieces of `size`."""
    reader = FrameReader(MAX_BLOCK)
    found = []
    for at in range(0, len(data), size or len(data)):
        reader.feed(data[at : at + (size or len(data))])
        while (one := reader.next_frame()) is not None:
            found.append(one)
    return found


EVERY_KIND = [
    frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0"),
    frame(HEADERS, END_HEADERS | END_STREAM, 1, b"block"),
    frame(HEADERS, PADDED | HAS_PRIORITY | END_HEADERS, 3, b"\2" + uint32(1) + b"\x10block\0\0"),
    frame(HEADERS, END_STREAM, 5, b"be") + frame(CONTINUATION, 0, 5, b"gi")
    + frame(CONTINUATION, END_HEADERS, 5, b"n"),
    frame(DATA, PADDED, 1, b"\1body\0"),
    frame(DATA, END_STREAM, 1),
    frame(PRIORITY, 0, 1, uint32(3) + b"\0"),
    frame(RST_STREAM, 0, 1, uint32(8)),
    frame(SETTINGS, ACK, 0),
    frame(PING, 0, 0, b"12345678"),
    frame(GOAWAY, 0, 0, uint32(1) + uint32(0) + b"text"),
    frame(WINDOW_UPDATE, 0, 0, uint32(1)),
    frame(0xFE, 0xFF, 7, b"unknown"),
]  # fmt: skip
FOUND = [
    (SETTINGS, 0, 0, b"", 0),
    (SETTINGS, 0, 0, b"\0\4\0\1\0\0", 6),
    (HEADERS, END_HEADERS | END_STREAM, 1, b"block", 5),
    (HEADERS, PADDED | HAS_PRIORITY | END_HEADERS, 3, b"block", 13),
    (HEADERS, END_HEADERS | END_STREAM, 5, b"begin", 5),
    (DATA, PADDED, 1, b"body", 6),
    (DATA, END_STREAM, 1, b"", 0),
    (PRIORITY, 0, 1, uint32(3) + b"\0", 5),
    (RST_STREAM, 0, 1, uint32(8), 4),
    (SETTINGS, ACK, 0, b"", 0),
    (PING, 0, 0, b"12345678", 8),
    (GOAWAY, 0, 0, uint32(1) + uint32(0) + b"text", 12),
    (WINDOW_UPDATE, 0, 0, uint32(1), 4),
    (0xFE, 0xFF, 7, b"unknown", 7),
]


def test_every_kind_of_frame_is_read() -> None:
    assert read(START + b"".join(EVERY_KIND)) == FOUND


def test_any_split_gives_the_same_frames() -> None:
    data = START + b"".join(EVERY_KIND)
    for size in range(1, 60):
        assert read(data, size) == FOUND
    for cut in range(len(data)):
        reader = FrameReader(MAX_BLOCK)
        found = []
        for part in (data[:cut], data[cut:]):
            reader.feed(part)
            while (one := reader.next_frame()) is not None:
                found.append(one)
        assert found == FOUND
        assert not reader.incomplete


def test_incomplete_until_the_last_byte() -> None:
    data = PREFACE + frame(SETTINGS, 0, 0) + EVERY_KIND[3]
    reader = FrameReader(MAX_BLOCK)
    whole = {len(data), len(START)}
    for at in range(len(data)):
        reader.feed(data[at : at + 1])
        while reader.next_frame() is not None:
            continue
        assert reader.incomplete is (at + 1 not in whole)


def test_the_reserved_bit_of_a_stream_is_ignored() -> None:
    data = START + frame(DATA, 0, 0x80000001, b"x")
    assert read(data)[1] == (DATA, 0, 1, b"x", 1)


BAD = [
    ("3.4 another preface", PREFACE[:-1] + b"!", "PROTOCOL_ERROR"),
    ("3.4 HEADERS first", PREFACE + EVERY_KIND[1], "PROTOCOL_ERROR"),
    ("3.4 an acknowledgement first", PREFACE + frame(SETTINGS, ACK, 0), "PROTOCOL_ERROR"),
    ("4.2 a frame above 16 KiB", START + b"\0\x40\1\0\0\0\0\0\1", "FRAME_SIZE_ERROR"),
    ("4.3 a frame within a block", START + frame(HEADERS, 0, 1) + frame(PING, 0, 0, b"8" * 8),
     "PROTOCOL_ERROR"),
    ("4.3 a block goes on elsewhere", START + frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 3),
     "PROTOCOL_ERROR"),
    ("5.3.1 HEADERS that depend on themselves",
     START + frame(HEADERS, HAS_PRIORITY, 1, uint32(1) + b"\0"), "PROTOCOL_ERROR"),
    ("5.3.1 PRIORITY that depends on itself", START + frame(PRIORITY, 0, 1, uint32(1) + b"\0"),
     "PROTOCOL_ERROR"),
    ("6.1 DATA on stream 0", START + frame(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    ("6.1 padding as long as DATA", START + frame(DATA, PADDED, 1, b"\2ab"[:2]), "PROTOCOL_ERROR"),
    ("6.1 no length of the padding", START + frame(DATA, PADDED, 1), "FRAME_SIZE_ERROR"),
    ("6.2 HEADERS on stream 0", START + frame(HEADERS, END_HEADERS, 0), "PROTOCOL_ERROR"),
    ("6.2 padding as long as HEADERS", START + frame(HEADERS, PADDED, 1, b"\2a"), "PROTOCOL_ERROR"),
    ("6.2 half a priority", START + frame(HEADERS, HAS_PRIORITY, 1, b"123"), "FRAME_SIZE_ERROR"),
    ("6.3 PRIORITY on stream 0", START + frame(PRIORITY, 0, 0, b"12345"), "PROTOCOL_ERROR"),
    ("6.4 RST_STREAM on stream 0", START + frame(RST_STREAM, 0, 0, b"1234"), "PROTOCOL_ERROR"),
    ("6.4 RST_STREAM of 3 bytes", START + frame(RST_STREAM, 0, 1, b"123"), "FRAME_SIZE_ERROR"),
    ("6.5 SETTINGS on a stream", START + frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    ("6.5 SETTINGS of 5 bytes", START + frame(SETTINGS, 0, 0, b"12345"), "FRAME_SIZE_ERROR"),
    ("6.5 an acknowledgement with values", START + frame(SETTINGS, ACK, 0, b"123456"),
     "FRAME_SIZE_ERROR"),
    ("6.6 PUSH_PROMISE", START + frame(PUSH_PROMISE, 0, 1, b"1234"), "PROTOCOL_ERROR"),
    ("6.7 PING on a stream", START + frame(PING, 0, 1, b"12345678"), "PROTOCOL_ERROR"),
    ("6.7 PING of 6 bytes", START + frame(PING, 0, 0, b"123456"), "FRAME_SIZE_ERROR"),
    ("6.8 GOAWAY on a stream", START + frame(GOAWAY, 0, 1, b"12345678"), "PROTOCOL_ERROR"),
    ("6.8 GOAWAY of 7 bytes", START + frame(GOAWAY, 0, 0, b"1234567"), "FRAME_SIZE_ERROR"),
    ("6.9 a short WINDOW_UPDATE", START + frame(WINDOW_UPDATE, 0, 0, b"123"), "FRAME_SIZE_ERROR"),
    ("6.9 WINDOW_UPDATE of 0", START + frame(WINDOW_UPDATE, 0, 0, uint32(0)), "PROTOCOL_ERROR"),
    ("6.10 a lone CONTINUATION", START + frame(CONTINUATION, 0, 1), "PROTOCOL_ERROR"),
    ("too many CONTINUATIONs", START + frame(HEADERS, 0, 1) + 9 * frame(CONTINUATION, 0, 1),
     "ENHANCE_YOUR_CALM"),
    ("a block above the limit", START + frame(HEADERS, 0, 1, b"x" * 1001), "ENHANCE_YOUR_CALM"),
    ("a block above the limit in parts",
     START + frame(HEADERS, 0, 1, b"x" * 999) + frame(CONTINUATION, 0, 1, b"xx"),
     "ENHANCE_YOUR_CALM"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "code"), [pytest.param(data, code, id=name) for name, data, code in BAD]
)
@pytest.mark.parametrize("size", [0, 1, 10])
def test_a_bad_frame_ends_the_connection(data: bytes, code: str, size: int) -> None:
    with pytest.raises(Http2ConnectionError) as raised:
        read(data, size)
    assert raised.value.code is ErrorCode[code]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(frame(PRIORITY, 0, 1, b"1234"), "FRAME_SIZE_ERROR", id="6.3"),
        pytest.param(frame(WINDOW_UPDATE, 0, 1, uint32(0)), "PROTOCOL_ERROR", id="6.9"),
    ],
)
def test_some_bad_frames_end_their_stream_only(bad: bytes, code: str) -> None:
    reader = FrameReader(MAX_BLOCK)
    reader.feed(START + bad + frame(PING, 0, 0, b"12345678"))
    assert reader.next_frame() is not None
    with pytest.raises(Http2StreamError) as raised:
        reader.next_frame()
    assert (raised.value.stream, raised.value.code) == (1, ErrorCode[code])
    assert reader.next_frame() == (PING, 0, 0, b"12345678", 8)


@given(st.binary(max_size=100), st.integers(1, 20))
def test_any_bytes_give_frames_or_an_error_however_they_are_split(data: bytes, size: int) -> None:
    def outcome(size: int) -> list[object]:
        found: list[object] = []
        reader = FrameReader(MAX_BLOCK)
        whole = START + data
        for at in range(0, len(whole), size):
            reader.feed(whole[at : at + size])
            while True:
                try:
                    one = reader.next_frame()
                except Http2StreamError as error:
                    found.append(error.code)
                    continue
                except Http2ConnectionError as error:
                    return [*found, error.code]
                if one is None:
                    break
                found.append(one)
        return found

    assert outcome(size) == outcome(len(START + data))


# Writing, read by another library


def parsed(data: bytes) -> list[Any]:
    found = []
    while data:
        one, length = other.Frame.parse_frame_header(memoryview(data[:9]))
        one.parse_body(memoryview(data[9 : 9 + length]))
        found.append(one)
        data = data[9 + length :]
    return found


def test_written_frames_are_read_by_another_library() -> None:
    (settings,) = parsed(frames.settings([(3, 100), (4, 5)]))
    assert settings.settings == {3: 100, 4: 5}
    (ack,) = parsed(frames.SETTINGS_ACK)
    assert ack.flags == {"ACK"}
    (ping,) = parsed(frames.ping(b"12345678", ack=True))
    assert (ping.opaque_data, ping.flags) == (b"12345678", {"ACK"})
    (reset,) = parsed(frames.rst_stream(7, 8))
    assert (reset.stream_id, reset.error_code) == (7, 8)
    (update,) = parsed(frames.window_update(9, 2**31 - 1))
    assert (update.stream_id, update.window_increment) == (9, 2**31 - 1)
    (goaway,) = parsed(frames.goaway(2**31 - 1, 11, "calm"))
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (
        2**31 - 1, 11, b"calm",
    )  # fmt: skip


@given(st.integers(0, 60_000), st.booleans())
def test_a_long_block_goes_out_in_continuations(size: int, ended: bool) -> None:
    first, *rest = parsed(frames.headers(5, b"x" * size, ended=ended))
    assert isinstance(first, other.HeadersFrame)
    assert ("END_STREAM" in first.flags) is ended
    assert all(isinstance(one, other.ContinuationFrame) for one in rest)
    assert b"".join(one.data for one in [first, *rest]) == b"x" * size
    ends = ["END_HEADERS" in one.flags for one in [first, *rest]]
    assert ends == [False] * len(rest) + [True]
    assert all(len(one.data) <= 16384 for one in [first, *rest])
