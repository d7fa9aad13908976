"""Generations as server-sent events: the engine publishes, a worker frames.

The engine only wakes the connection. The worker that the connection then runs on takes the
new deltas and frames them, so a stream costs the engine one call a step and no encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from cllm.api.errors import describe
from cllm.http import BodyStream

if TYPE_CHECKING:
    from cllm.engine import Generation

# Bytes a pending token costs once framed, in addition to its text: the prefix with the id, the end.
_FRAME = 75


class Frames(Protocol):
    """The events of one API; `index` counts the generations of a request.

    ping: a whole event without content, for a quiet stream.
    """

    @property
    def ping(self) -> bytes: ...

    def opening(self) -> bytes:
        """What comes before the first delta."""

    def delta(self, index: int, text: str) -> bytes:
        """A piece of text."""

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        """The end of one generation."""

    def closing(self) -> bytes:
        """What comes after the end of all."""

    def broken_off(self, reason: str) -> bytes:
        """The last event if the server stops the stream before the generations end."""


class GenerationStream(BodyStream):
    """The events of a request's generations, in the order in which they are made."""

    __slots__ = ("_ended", "_finish", "_frames", "_generations", "_open", "_request_id", "_taken")

    content_type = "text/event-stream"

    def __init__(
        self,
        request_id: str,
        submit: Callable[[Callable[[], None]], Sequence[Generation]],
        frames: Callable[[Sequence[Generation]], Frames],
        finish: Callable[[Generation], None],
    ) -> None:
        """submit: starts the generations, which call its argument after each step; this raises as
        it does. frames: of these. finish: called with each generation that has ended.
        """
        super().__init__()
        self._request_id = request_id
        self._finish = finish
        self._open: list[int] | None = None  # generations that have not ended; None: not begun
        self._taken = 0  # tokens
        self._ended = False
        self._generations: Sequence[Generation] = ()  # updates may come before `submit` returns
        generations = submit(self.on_update)
        self._frames = frames(generations)
        self.ping = self._frames.ping
        self._generations = generations

    def on_update(self) -> None:
        """After a step, on the engine: wake the connection, or give up on a slow reader."""
        generations, wake = self._generations, self._wake
        if not generations or wake is None:
            return  # `attach` checks for itself
        if self.overflows(self.pending):
            waiting = self._made() - self._taken
            self.cancel(f"the reader is too slow: {waiting} tokens are unread")
        elif not self._notified:
            # Once until the next `take`: no run for every token while the socket is full.
            self._notified = True
            wake()

    @property
    def pending(self) -> int:
        """About how many bytes the events take that are not taken."""
        pending = (self._made() - self._taken) * _FRAME
        for generation in self._generations:
            pending += generation.pending_chars
        return pending

    def attach(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        if any(g.done or g.pending_chars for g in self._generations):
            self._notified = True
            wake()

    def take(self, most: int = 0) -> list[bytes]:
        """The events of all deltas since the last call, as one piece: they are sent together."""
        if not self._generations or self._ended or self.cancel_reason is not None:
            return []
        # Before anything is read: what is published from here on wakes again.
        self._notified = False
        frames = self._frames
        pieces: list[bytes] = []
        self._taken = self._made()
        if self._open is None:
            self._open = list(range(len(self._generations)))
            pieces.append(frames.opening())
        for index in tuple(self._open):
            generation = self._generations[index]
            # Read before the deltas: once it is set, everything has been published.
            done = generation.done
            pieces += [frames.delta(index, text) for text in generation.take()]
            if done:
                self._open.remove(index)
                pieces.append(frames.end(index, generation, self._error(generation)))
                self._finish(generation)
        if not self._open:
            pieces.append(frames.closing())
            with self._lock:
                self._ended = True
        joined = b"".join(pieces)
        return [joined] if joined else []

    @property
    def finished(self) -> bool:
        return self._ended

    def cancel(self, reason: str) -> None:
        """The client left or reads too slowly: the sequences leave before the next step."""
        with self._lock:
            if self._ended or self.cancel_reason is not None:
                return
            self.cancel_reason = reason
            callbacks, self._cancel_callbacks = self._cancel_callbacks, []
        for generation in self._generations:
            generation.cancel()
        for callback in callbacks:
            callback(reason)
        if self._wake is not None:
            self._wake()

    def end_event(self, reason: str) -> bytes:
        """The last event if the server stops the stream before the generations end."""
        return self._frames.broken_off(reason)

    def _made(self) -> int:
        made = 0
        for generation in self._generations:
            made += generation.usage.completion_tokens
        return made

    def _error(self, generation: Generation) -> str | None:
        if generation.error is not None:
            return describe(generation.error, self._request_id).message
        cancelled = generation.finish_reason == "cancelled"
        return "the generation was cancelled" if cancelled else None
