"""What a client may cost without asking for anything: resets, control frames, tiny frames.

Each has a token bucket. A client that empties one gets GOAWAY with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from time import monotonic

from cllm.http.http2.errors import ErrorCode, Http2ConnectionError

MAX_STREAMS = 100  # at once; further ones get REFUSED_STREAM

# Resets by the client, and by this server for the client's errors: both let a client begin work and
# not wait for it (CVE-2023-44487, CVE-2025-8671).
RESETS = 100
RESETS_PER_SECOND = 20

# PING, SETTINGS, PRIORITY, WINDOW_UPDATE, GOAWAY, empty DATA, frames of unknown types. Clients send
# them in proportion to the traffic, so each frame of a request or a response allows some more. A
# client that was held up answers all that it missed at once: with 10 MB of events in the buffers of
# its socket, those are 50 000 frames. As many control frames take about 0.2 s.
CONTROLS = 200
CONTROLS_PER_SECOND = 10
CONTROLS_PER_FRAME = 2
CONTROLS_EARNED = 100_000  # at most saved up

# A DATA frame costs about 2 µs whatever its size. The running sum of (SMALL_DATA - size), at least
# 0, may not exceed SMALL_DATA_SUM: 33 000 frames of one byte. The last one of a body is left out.
SMALL_DATA = 64  # bytes
SMALL_DATA_SUM = 2 * 1024 * 1024  # bytes


class Bucket:
    """A token bucket: `capacity` at once, `rate` a second."""

    __slots__ = ("_at", "_capacity", "_level", "_rate")

    def __init__(self, capacity: int, rate: float) -> None:
        self._capacity = capacity
        self._rate = rate
        self._at = monotonic()
        self._level: float = capacity

    def take(self) -> bool:
        """Take one; False if there is none."""
        now = monotonic()
        self._level = min(self._level + (now - self._at) * self._rate, self._capacity)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Guards:
    """The limits of one connection; each method raises Http2ConnectionError past its limit."""

    __slots__ = ("_controls", "_earned", "_resets", "_small")

    def __init__(self) -> None:
        self._resets = Bucket(RESETS, RESETS_PER_SECOND)
        self._controls = Bucket(CONTROLS, CONTROLS_PER_SECOND)
        self._earned = 0  # control frames, by traffic
        self._small = 0

    def reset(self) -> None:
        """A stream is reset by the client, or because of it."""
        if not self._resets.take():
            raise calm("too many streams are reset", "resets")

    def control(self) -> None:
        """A frame that carries nothing of a request."""
        if self._earned:
            self._earned -= 1
        elif not self._controls.take():
            raise calm("too many frames that carry no request", "control_frames")

    def traffic(self, count: int) -> None:
        """Frames of requests or responses."""
        self._earned = min(self._earned + count * CONTROLS_PER_FRAME, CONTROLS_EARNED)

    def data(self, size: int) -> None:
        """A DATA frame that is not the last of its body."""
        if not size:
            self.control()
            return
        self._small = max(self._small + SMALL_DATA - size, 0)
        if self._small > SMALL_DATA_SUM:
            raise calm(f"too many DATA frames of less than {SMALL_DATA} bytes", "small_frames")


def calm(text: str, limit: str) -> Http2ConnectionError:
    """The error of a client that passes a limit of this server."""
    return Http2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, text, limit)
