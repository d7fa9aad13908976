"""SETTINGS: what this server says, and what a client may say (RFC 9113 section 6.5)."""

from __future__ import annotations

from cllm.http.http2 import frames
from cllm.http.http2.errors import ErrorCode, Http2ConnectionError
from cllm.http.http2.guards import MAX_STREAMS
from cllm.http.http2.hpack import TABLE_SIZE
from cllm.http.http2.outbox import DEFAULT_WINDOW
from cllm.http.http2.windows import CONNECTION_WINDOW, STREAM_WINDOW
from cllm.http.limits import Limits


def greeting(limits: Limits) -> bytes:
    """The server's connection preface (section 3.4), with the window of the connection."""
    return frames.settings(
        (
            (frames.MAX_CONCURRENT_STREAMS, MAX_STREAMS),
            (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (frames.MAX_HEADER_LIST_SIZE, limits.head),
        )
    ) + frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW)


class PeerSettings:
    """The client's settings that concern a server; MAX_FRAME_SIZE is never too small for it."""

    __slots__ = ("initial_window", "table_size")

    def __init__(self) -> None:
        self.initial_window = DEFAULT_WINDOW
        self.table_size = TABLE_SIZE

    def apply(self, payload: bytes) -> None:
        """Take the values of a frame; of a repeated one the last. Raises Http2ConnectionError."""
        for identifier, value in frames.settings_in(payload):
            if identifier == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise Http2ConnectionError(
                        ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}"
                    )
                self.initial_window = value
            elif identifier == frames.MAX_FRAME_SIZE:
                if not frames.FRAME_SIZE <= value < 2**24:
                    raise _invalid("MAX_FRAME_SIZE", value)
            elif identifier == frames.ENABLE_PUSH:
                if value > 1:
                    raise _invalid("ENABLE_PUSH", value)
            elif identifier == frames.HEADER_TABLE_SIZE:
                self.table_size = value


def _invalid(name: str, value: int) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCode.PROTOCOL_ERROR, f"{name} is {value}")
