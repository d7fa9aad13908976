"""Records of steps as arrays, and what they tell about a request or about the last minute."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STEPS = 8192  # records that are kept: 512 KiB; a minute at 135 steps a second

_MEDIAN_OF = 256  # gaps
_ROUNDING = 1e-6  # s: the times of a request are sums

Column = npt.NDArray[np.float64]


class Steps(NamedTuple):
    """Records of consecutive steps, the oldest first; each field is an array over them.

    first: the number of the oldest, counted from the engine's start. at: when its tokens were
    published, by time.monotonic(). prompt_rows, decode_rows: tokens evaluated of prompts (those
    that a constraint forces included) and of running generations (drafts included). tokens:
    generated. decode_s, sample_s, publish_s, other_s: parts of its time.
    """

    first: int
    at: Column
    prompt_rows: Column
    decode_rows: Column
    tokens: Column
    decode_s: Column
    sample_s: Column
    publish_s: Column
    other_s: Column

    @property
    def next(self) -> int:
        """The number of the first step after these."""
        return self.first + len(self.at)

    def then(self, newer: Steps) -> Steps:
        """The last STEPS of these and newer ones."""
        if newer.first != self.next:
            return newer  # some between them are lost
        joined = [
            np.concatenate((mine, theirs))[-STEPS:]
            for mine, theirs in zip(self[1:], newer[1:], strict=True)
        ]
        return Steps(newer.next - len(joined[0]), *joined)

    @property
    def _parts(self) -> tuple[Column, ...]:
        return self.decode_s, self.sample_s, self.publish_s, self.other_s

    @property
    def took(self) -> Column:
        """Seconds of each step."""
        return self.decode_s + self.sample_s + self.publish_s + self.other_s

    def busy(self, since: float) -> float | None:
        """Of the second after `since`, the share spent in steps; None if none published then."""
        first = int(self.at.searchsorted(since))
        if first == len(self.at):
            return None
        return min(1.0, sum(float(part[first:].sum()) for part in self._parts))

    def by_second(self, end: int, seconds: int) -> tuple[list[int | None], ...]:
        """Tokens generated, tokens of prompts and steps in each whole second before `end`.

        The oldest first; None where the records do not cover the second.
        """
        begin = end - seconds
        first, last = (int(self.at.searchsorted(float(moment))) for moment in (begin, end))
        second = (self.at[first:last] - begin).astype(np.intp)
        unknown = 0
        if self.first and not first:  # older records are lost
            unknown = int(second[0]) + 1 if len(second) else seconds

        def sums(weights: Column | None) -> list[int | None]:
            part = None if weights is None else weights[first:last]
            counted: list[int] = np.bincount(second, part, seconds).astype(np.int64).tolist()
            return [*[None] * unknown, *counted[unknown:]]

        return sums(self.tokens), sums(self.prompt_rows), sums(None)

    def last(self, most: int) -> list[tuple[int, list[int], list[float]]]:
        """The last steps: number; prompt_rows, decode_rows, tokens; seconds by part."""
        begin = max(0, len(self.at) - most)
        rows = [each[begin:] for each in (self.prompt_rows, self.decode_rows, self.tokens)]
        counts: list[list[int]] = np.stack(rows).astype(np.int64).T.tolist()
        parts: list[list[float]] = np.stack([each[begin:] for each in self._parts]).T.tolist()
        return list(zip(range(self.first + begin, self.next), counts, parts, strict=True))


class Pace:
    """What the records of steps tell about the time between two moments."""

    def __init__(self, steps: Steps) -> None:
        self._at = steps.at
        self._made_at = steps.at[steps.tokens > 0]
        self._gaps = np.diff(self._made_at)
        reading = np.where(steps.prompt_rows > 0, steps.took, 0.0)
        self._reading = np.concatenate(([0.0], np.cumsum(reading)))
        self._found: dict[tuple[int, int], tuple[float, float]] = {}

    def gaps(self, start: float, end: float) -> tuple[float, float] | None:
        """The median of the last 256 gaps between tokens, and the longest gap.

        Of a request that generated from `start` to `end`: each step that generates gives it tokens.
        """
        at = self._made_at
        first, last = int(at.searchsorted(start - _ROUNDING)), int(at.searchsorted(end + _ROUNDING))
        if last - first < 2:
            return None
        found = self._found.get((first, last))
        if found is None:
            gaps = self._gaps[first : last - 1]
            newest = gaps[-_MEDIAN_OF:]
            middle = len(newest) // 2
            found = float(np.partition(newest, middle)[middle]), float(gaps.max())
            self._found[first, last] = found
        return found

    def reading(self, start: float, end: float) -> float:
        """Seconds in steps that read prompts, among those that published in between."""
        at, total = self._at, self._reading
        first, last = at.searchsorted(start + _ROUNDING), at.searchsorted(end + _ROUNDING)
        return float(total[last] - total[first])
