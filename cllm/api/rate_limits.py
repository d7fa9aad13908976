"""Token buckets: what a key may use in a minute. Pure: the clock is given."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

MINUTE = 60.0  # s

Field = tuple[str, str]


class Bucket:
    """Holds one minute's allowance and fills continuously. Not for several threads at once.

    It may go below zero: what has begun is never cut, and the next request waits for it.
    """

    __slots__ = ("_at", "level", "size")

    def __init__(self, size: int, now: float) -> None:
        """size: the allowance of a minute."""
        self.size = size
        self.level = float(size)
        self._at = now

    def use(self, amount: float, now: float) -> None:
        """Count what is used at this moment."""
        self._fill(now)
        self.level -= amount

    def spread(self, amount: float, now: float) -> None:
        """Count what was used evenly since the last call; a negative amount is given back."""
        if amount:
            self.level = min(self.level - amount, self.size)
        self._fill(now)

    def wait(self, least: float, now: float) -> float:
        """Seconds until the level is `least`; 0: it is."""
        self._fill(now)
        return 0.0 if self.level >= least else (least - self.level) * MINUTE / self.size

    def resize(self, size: int, now: float) -> None:
        """Another allowance from now on; what was used stays used."""
        self._fill(now)
        self.level += size - self.size
        self.size = size

    @property
    def remaining(self) -> int:
        """What can be used now, at least 0."""
        return int(self.level) if self.level > 0 else 0

    @property
    def full_in(self) -> float:
        """Seconds until it is full."""
        return (self.size - self.level) * MINUTE / self.size

    def _fill(self, now: float) -> None:
        if now > self._at:
            level = self.level + (now - self._at) * self.size / MINUTE
            self.level = level if level < self.size else self.size
            self._at = now


_OPENAI = {
    kind: tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}


def retry_fields(seconds: float) -> tuple[Field, Field]:
    """When to try again: Retry-After in whole seconds (RFC 9110 section 10.2.3), and exactly.

    OpenAI's and Anthropic's clients prefer `retry-after-ms`.
    """
    return (
        ("Retry-After", str(max(1, math.ceil(seconds)))),
        ("retry-after-ms", str(max(1, math.ceil(seconds * 1000)))),
    )


def openai_fields(kind: str, bucket: Bucket) -> tuple[Field, ...]:
    """OpenAI's fields of one limit. kind: "requests" or "tokens"."""
    limit, remaining, reset = _OPENAI[kind]
    size, level = bucket.size, bucket.level
    return (
        (limit, f"{size}"),
        (remaining, f"{int(level)}" if level > 0 else "0"),
        (reset, _duration((size - level) * MINUTE / size)),
    )


def anthropic_fields(kind: str, bucket: Bucket, clock: datetime | None = None) -> tuple[Field, ...]:
    """Anthropic's fields of one limit, whose reset is a time (RFC 3339). clock: the time now."""
    full = (clock or datetime.now(timezone.utc)) + timedelta(seconds=bucket.full_in)
    return (
        (f"anthropic-ratelimit-{kind}-limit", str(bucket.size)),
        (f"anthropic-ratelimit-{kind}-remaining", str(bucket.remaining)),
        (f"anthropic-ratelimit-{kind}-reset", full.strftime("%Y-%m-%dT%H:%M:%SZ")),
    )


def _duration(seconds: float) -> str:
    """As OpenAI writes it: "12ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{seconds:.4g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
