"""What the engine did lately: its last steps and the requests that ended, for monitors.

The engine thread writes and any thread reads, without locks. A step is one `pack_into`, which no
other thread can interrupt, and counts only once `steps` has risen; a reader drops the records that
may have been overwritten while it copied.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cllm.engine.generation import Generation
from cllm.engine.request import Request, Timings, Usage

STEPS = 8192  # records of steps: 512 KiB; a minute at 135 steps a second
ENDED = 100  # requests

_STEP = struct.Struct("8d")
_NONE = np.empty((0, 8))


class RequestRecord(NamedTuple):
    """One request as of a moment, or as it ended.

    submitted: by time.monotonic(). slot, prefix, guessed, guessed_right: see Generation; None, ""
    and 0 for one that generates nothing. finish_reason: None while it runs. error: as text, or "".
    """

    id: str
    tenant: str
    submitted: float
    timings: Timings
    usage: Usage
    slot: int | None
    prefix: str
    guessed: int
    guessed_right: int
    finish_reason: str | None
    error: str


def record_of(request: Request, tenant: str) -> RequestRecord:
    """Describe a request as of now. Any thread."""
    slot, prefix, guessed, guessed_right = None, "", 0, 0
    if isinstance(request, Generation):
        slot, prefix = request.slot, request.prefix
        guessed, guessed_right = request.guessed, request.guessed_right
    error = request.error
    return RequestRecord(
        request.id,
        tenant,
        request.submitted,
        request.timings,
        request.usage,
        slot,
        prefix,
        guessed,
        guessed_right,
        request.finish_reason,
        "" if error is None else str(error),
    )


class Steps(NamedTuple):
    """Records of consecutive steps, the oldest first; each field is an array over them.

    first: the number of the oldest, counted from the engine's start. at: when its tokens were
    published, by time.monotonic(). prompt_rows, decode_rows: tokens evaluated of prompts (those
    that a constraint forces included) and of running generations (drafts included). tokens:
    generated. decode_s, sample_s, publish_s, other_s: parts of its time.
    """

    first: int
    at: npt.NDArray[np.float64]
    prompt_rows: npt.NDArray[np.float64]
    decode_rows: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    decode_s: npt.NDArray[np.float64]
    sample_s: npt.NDArray[np.float64]
    publish_s: npt.NDArray[np.float64]
    other_s: npt.NDArray[np.float64]

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


class History:
    """The last STEPS steps and the last ENDED requests."""

    __slots__ = ("_data", "_ended", "ended", "steps")

    def __init__(self) -> None:
        self._data = bytearray(STEPS * _STEP.size)
        self._ended: deque[tuple[int, RequestRecord]] = deque(maxlen=ENDED)
        self.steps = 0  # so far
        self.ended = 0  # requests so far

    # The engine thread.

    def note_step(
        self,
        at: float,
        prompt_rows: int,
        decode_rows: int,
        tokens: int,
        decode_s: float,
        sample_s: float,
        publish_s: float,
        other_s: float,
    ) -> None:
        """Add a step; the arguments are the fields of Steps."""
        number = self.steps
        _STEP.pack_into(
            self._data,
            number % STEPS * _STEP.size,
            at,
            prompt_rows,
            decode_rows,
            tokens,
            decode_s,
            sample_s,
            publish_s,
            other_s,
        )
        self.steps = number + 1

    def note_end(self, request: Request, tenant: str) -> None:
        """Add a request that has ended."""
        self._ended.append((self.ended, record_of(request, tenant)))
        self.ended += 1

    # Any thread.

    def steps_since(self, number: int) -> Steps:
        """The records from a number on that are kept."""
        end, size = self.steps, _STEP.size
        begin = max(number, end - STEPS) % STEPS * size
        count = min(end - number, STEPS) * size
        # Slices hold the interpreter lock, so that each record is whole; numpy may release it.
        data = self._data[begin : begin + count]
        data += self._data[: count - len(data)]
        first = max(number, self.steps + 1 - STEPS)
        rows = np.frombuffer(data).reshape(-1, size // 8)[first - end :] if end > first else _NONE
        return Steps(first, *np.ascontiguousarray(rows.T))

    def ended_since(self, number: int) -> list[tuple[int, RequestRecord]]:
        """Those of the last requests with at least this number, the oldest first."""
        # `copy` holds the interpreter lock; iterating would fail when the engine thread appends.
        return [each for each in self._ended.copy() if each[0] >= number]
