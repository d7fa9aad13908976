"""Server-sent events of the native API; see `cllm.api.stream.Frames`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import encode
from cllm.http.sse import PING

if TYPE_CHECKING:
    from cllm.engine import Generation


class NativeFrames:
    """The events of ``/generate_stream``: one for each delta, and one for the end."""

    __slots__ = ("_prefix",)

    ping = PING

    def __init__(self, generations: Sequence[Generation]) -> None:
        (generation,) = generations
        self._prefix = b'data: {"id":"%s","token":' % generation.id.encode()

    def opening(self) -> bytes:
        return b""

    def delta(self, index: int, text: str) -> bytes:
        return b'%b%b,"done":false}\n\n' % (self._prefix, encode(text))

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        end: dict[str, Any] = {"finish_reason": generation.finish_reason, "usage": generation.usage}
        return self._last(end if error is None else {**end, "error": error})

    def closing(self) -> bytes:
        return b""

    def broken_off(self, reason: str) -> bytes:
        return self._last({"error": reason, "finish_reason": "cancelled"})

    def _last(self, end: dict[str, Any]) -> bytes:
        # The end's braces: its keys continue the object that the prefix opened.
        return self._prefix + b'"","done":true,' + encode(end)[1:] + b"\n\n"
