"""Server-sent events: framing and the streams that use it (WHATWG HTML section 9.2)."""

from __future__ import annotations

import re
from typing import Any

from cllm.http.body_stream import BodyStream, IterableStream, compact_json

EVENT_STREAM = "text/event-stream"

# Section 9.2.5's end-of-line; str.splitlines() would split at U+2028 and others too.
_END_OF_LINE = re.compile(rb"\r\n|\r|\n")
_LINE_BREAK_OR_NUL = re.compile(r"[\r\n\0]")


def event(
    data: str | bytes,
    event: str | None = None,
    id: str | None = None,
    retry: int | None = None,
) -> bytes:
    """One event; `data` of several lines becomes several data fields and arrives unchanged.

    `retry` is in milliseconds. Raises ValueError for a name or id that does not fit in a line.
    """
    raw = data.encode() if isinstance(data, str) else data
    if event is None and id is None and retry is None and b"\n" not in raw and b"\r" not in raw:
        return b"data: %b\n\n" % raw
    fields = []
    for name, value in (("event", event), ("id", id)):
        if value is not None:
            if _LINE_BREAK_OR_NUL.search(value):
                raise ValueError(f"an event's {name} is one line without NUL, not {value!r}")
            fields.append(f"{name}: {value}\n".encode())
    if retry is not None:
        if retry < 0:
            raise ValueError(f"an event's retry is in milliseconds, not {retry}")
        fields.append(b"retry: %d\n" % retry)
    fields += (b"data: %b\n" % line for line in _END_OF_LINE.split(raw))
    return b"".join(fields) + b"\n"


def json_event(value: Any, event_name: str | None = None, id: str | None = None) -> bytes:
    """One event whose data is compact JSON, which never holds a line break."""
    return event(compact_json(value), event_name, id)


def comment(text: str = "") -> bytes:
    """A comment, which clients ignore: keeps proxies from closing a quiet stream."""
    if _LINE_BREAK_OR_NUL.search(text):
        raise ValueError(f"a comment is one line without NUL, not {text!r}")
    return f": {text}\n\n".encode()


PING = comment()


def end_event(reason: str) -> bytes:
    """The last event of a stream that could not end normally."""
    return json_event({"error": reason, "done": True})


class EventStream(BodyStream):
    """Events from another thread: `send` frames and writes."""

    __slots__ = ()

    content_type = EVENT_STREAM

    def send(
        self,
        data: str | bytes | dict[str, Any],
        event_name: str | None = None,
        id: str | None = None,
    ) -> None:
        """One event, a dict as JSON; raises as `BodyStream.write`, ValueError as `event`."""
        raw = compact_json(data) if isinstance(data, dict) else data
        self.write(event(raw, event_name, id))

    def end_event(self, reason: str) -> bytes:
        return end_event(reason)


class IterableEventStream(IterableStream):
    """Events from an iterator: text and dicts (as JSON) are framed, bytes are sent unchanged."""

    __slots__ = ()

    content_type = EVENT_STREAM

    def frame(self, item: Any) -> bytes:
        if isinstance(item, str):
            return event(item)
        if isinstance(item, (bytes, bytearray, memoryview)):
            return bytes(item)
        return json_event(item)

    def end_event(self, reason: str) -> bytes:
        return end_event(reason)
