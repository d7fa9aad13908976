"""One generation as server-sent events: the engine publishes, a worker frames.

The engine thread only wakes the connection. The worker that the connection then runs on takes the
new deltas and frames them, so a stream costs the engine one call a step and no encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cllm.api.errors import describe
from cllm.api.responses import encode
from cllm.http import BodyStream

if TYPE_CHECKING:
    from cllm.engine import Generation

# Bytes a pending token costs once framed, beside its text: the prefix with the id and the end.
_FRAME = 75
_TOKEN_END = b',"done":false}\n\n'


class GenerationStream(BodyStream):
    """The events of API.md, one for each delta of a generation.

    ``on_update`` goes to ``Engine.submit``; ``bind`` must follow with what it gave.
    """

    __slots__ = ("_ended", "_finish", "_generation", "_prefix", "_request_id", "_tokens_taken")

    content_type = "text/event-stream"

    def __init__(self, request_id: str, finish: Callable[[Generation], None]) -> None:
        super().__init__()
        self._request_id = request_id
        self._finish = finish
        self._generation: Generation | None = None
        self._prefix = b""
        self._tokens_taken = 0
        self._ended = False

    def bind(self, generation: Generation) -> None:
        """Stream this generation; its updates may have begun already."""
        self._prefix = b'data: {"id":"%s","token":' % generation.id.encode()
        self._generation = generation

    def on_update(self) -> None:
        """On the engine thread after a step: wake the connection, or give up on a slow reader."""
        generation = self._generation
        wake = self._wake
        if generation is None or wake is None:
            return  # `attach` looks for itself
        waiting = generation.usage.completion_tokens - self._tokens_taken
        if generation.pending_chars + waiting * _FRAME > self.high_water:
            self.cancel(f"the reader is too slow: {waiting} tokens are unread")
        elif not self._notified:
            # Once until the next `take`: a reader whose socket is full is not run for every token.
            self._notified = True
            wake()

    def attach(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        generation = self._generation
        if generation is not None and (generation.done or generation.pending_chars):
            self._notified = True
            wake()

    def take(self) -> list[bytes]:
        """The events of every delta since the last call, as one piece: they leave together."""
        generation = self._generation
        if generation is None or self._ended or self.cancel_reason is not None:
            return []
        # Before anything is read: what is published from here on wakes again.
        self._notified = False
        # Before the deltas: when it is set, everything has been published.
        done = generation.done
        prefix = self._prefix
        pieces: list[bytes] = []
        self._tokens_taken = generation.usage.completion_tokens
        for delta in generation.take():
            pieces += (prefix, encode(delta), _TOKEN_END)
        if done:
            pieces.append(self._last(generation))
            with self._lock:
                self._ended = True
            self._finish(generation)
        return [b"".join(pieces)] if pieces else []

    @property
    def finished(self) -> bool:
        return self._ended

    def cancel(self, reason: str) -> None:
        """The client left or reads too slowly: the sequence leaves before the next step."""
        generation = self._generation
        with self._lock:
            if self._ended or self.cancel_reason is not None:
                return
            self.cancel_reason = reason
            callbacks, self._cancel_callbacks = self._cancel_callbacks, []
        if generation is not None:
            generation.cancel()
        for callback in callbacks:
            callback(reason)
        if self._wake is not None:
            self._wake()

    def end_event(self, reason: str) -> bytes:
        """The last event where the server stops the stream before the generation ended."""
        return self._event({"error": reason, "finish_reason": "cancelled"})

    def _last(self, generation: Generation) -> bytes:
        end: dict[str, Any] = {"finish_reason": generation.finish_reason, "usage": generation.usage}
        error = generation.error
        if error is not None:
            end["error"] = describe(error, self._request_id).message
        elif generation.finish_reason == "cancelled":
            end["error"] = "the generation was cancelled"
        return self._event(end)

    def _event(self, end: dict[str, Any]) -> bytes:
        # The end's braces: its keys continue the object that the prefix opened.
        return self._prefix + b'"","done":true,' + encode(end)[1:] + b"\n\n"
