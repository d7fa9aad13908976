"""Error codes of HTTP/2, and the two reaches of an error (RFC 9113 sections 5.4 and 7)."""

from __future__ import annotations

import enum


class ErrorCode(enum.IntEnum):
    """Section 7"""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Http2ConnectionError(Exception):
    """Ends the connection with GOAWAY (section 5.4.1).

    limit: the limit of this server that the peer has passed, for the statistics.
    """

    def __init__(self, code: ErrorCode, text: str, limit: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.limit = limit


class Http2StreamError(Exception):
    """Ends one stream with RST_STREAM (section 5.4.2)."""

    def __init__(self, stream: int, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.stream = stream
        self.code = code
        self.text = text
