"""Responses: status, fields and body, and the bytes of their head."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from cllm.http.body_stream import BodyStream, compact_json
from cllm.http.sse import EVENT_STREAM, PING

Octets = bytes  # the name `bytes` is a constructor inside HttpResponse

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
_UNBUFFERED = (
    "X-Accel-Buffering",
    "no",
)  # for nginx, which otherwise buffers the pieces of a stream


class HttpResponse:
    """A response; its body is bytes or a BodyStream.

    `headers` must not have the fields that the connection writes: Connection, Content-Length, Date,
    Server and Transfer-Encoding. These, and names or values that are not valid in a head, make
    `encode_head` raise ValueError.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
        body: Octets | BodyStream = b"",
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self.body = body

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> HttpResponse:
        """Compact UTF-8 JSON; raises TypeError or ValueError for what JSON cannot express."""
        return cls(status, [("Content-Type", JSON), *headers], compact_json(value))

    @classmethod
    def text(
        cls, text: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> HttpResponse:
        return cls(status, [("Content-Type", TEXT), *headers], text.encode())

    @classmethod
    def bytes(
        cls,
        data: Octets,
        content_type: str = "application/octet-stream",
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
    ) -> HttpResponse:
        return cls(status, [("Content-Type", content_type), *headers], data)

    @classmethod
    def empty(cls, status: int = 204, headers: Iterable[tuple[str, str]] = ()) -> HttpResponse:
        return cls(status, headers)

    @classmethod
    def stream(
        cls,
        stream: BodyStream,
        content_type: str | None = None,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
    ) -> HttpResponse:
        """A body of unknown length: chunked in HTTP/1.1, ended by the close in HTTP/1.0.

        Proxies that support X-Accel-Buffering pass on each piece at once.
        """
        content_type = content_type or stream.content_type
        if content_type == EVENT_STREAM:
            stream.ping = stream.ping or PING
        return cls(status, [("Content-Type", content_type), _UNBUFFERED, *headers], stream)

    @classmethod
    def sse(cls, stream: BodyStream, headers: Iterable[tuple[str, str]] = ()) -> HttpResponse:
        """Server-sent events, with the fields that prevent caching and buffering.

        While the stream is quiet its `ping` is sent, by default a comment.
        """
        return cls.stream(stream, EVENT_STREAM, headers=[("Cache-Control", "no-store"), *headers])

    @property
    def has_body(self) -> bool:
        """False where the status forbids one (RFC 9110 sections 15.3.5, 15.3.6, 15.4.5)."""
        return self.status not in BODYLESS

    def encode_head(
        self,
        *,
        keep_alive: bool,
        chunked: bool = False,
        server: str = "cLLM",
        request_id: str | None = None,
    ) -> Octets:
        """Status line and fields with the empty line after them.

        A bytes body gives Content-Length, also in answer to HEAD. For a stream, `chunked` gives
        Transfer-Encoding; without it (HTTP/1.0) the close ends the body and `keep_alive` must be
        False. Raises ValueError for what cannot be sent: answer 500 instead.
        """
        try:
            if type(self.body) is bytes:
                start = self._known_start(server)
                if not request_id:
                    return start + _ENDS[keep_alive]
                return start + _request_id_line(request_id) + _ENDS[keep_alive]
            parts = [_beginning(self.status, server)]
            if (length := self.content_length()) is not None:
                parts.append(b"Content-Length: %d\r\n" % length)
            elif chunked and self.has_body:
                parts.append(b"Transfer-Encoding: chunked\r\n")
            elif keep_alive and self.has_body:
                raise ValueError("a stream that is not chunked ends by closing the connection")
            parts += self._field_lines()
            if request_id:
                parts.append(_request_id_line(request_id))
        except TypeError as error:  # such as a number for a field's value
            raise ValueError(f"the response has a part of the wrong type: {error}") from error
        parts.append(_ENDS[keep_alive])
        return b"".join(parts)

    def _known_start(self, server: str) -> Octets:
        """The head of a body of bytes up to X-Request-Id: most responses of a second repeat one.

        Raises as `encode_head`.
        """
        known = _starts_of_now()
        key = (self.status, server, len(self.body), *self.headers)  # type: ignore[arg-type]
        start = known.get(key)
        if start is None:
            length = self.content_length()
            length_line = b"" if length is None else b"Content-Length: %d\r\n" % length
            start = b"".join((_beginning(self.status, server), length_line, *self._field_lines()))
            if len(known) < MAX_KNOWN_STARTS and len(start) <= MAX_KNOWN_START:
                known[key] = start
        return start

    def _field_lines(self) -> list[Octets]:
        return [_PREBUILT_FIELDS.get(field) or field_line(*field) for field in self.headers]

    def content_length(self) -> int | None:
        """Of the body, also in answer to HEAD; None for a stream and where none may be sent.

        Raises TypeError for a body that is neither bytes nor a BodyStream.
        """
        if self.status in BODYLESS:
            return 0 if self.status == 205 else None
        body = self.body
        if isinstance(body, bytes):
            return len(body)
        if isinstance(body, BodyStream):
            return None
        raise TypeError(f"the body is a {type(body).__name__}; give bytes or a BodyStream")

    def __repr__(self) -> str:
        body = "stream" if isinstance(self.body, BodyStream) else f"{len(self.body)} bytes"
        return f"<HttpResponse {self.status}, {body}>"


# RFC 9110 sections 15.3.5, 15.3.6, 15.4.5
BODYLESS = frozenset((204, 205, 304))

_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# Written by the connection; a second one would give the response two framings.
_RESERVED = frozenset(("connection", "content-length", "date", "server", "transfer-encoding"))

_ENDS = (b"Connection: close\r\n\r\n", b"Connection: keep-alive\r\n\r\n")  # by keep_alive

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def check_field(name: str, value: str) -> None:
    """Raise ValueError for what is not valid in one field line, or is the connection's to write."""
    if not _FIELD_NAME.fullmatch(name) or name.lower() in _RESERVED:
        raise ValueError(f"a response cannot set the field {name!r}")
    if not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"the response field {name} has a value that cannot be sent: {value!r}")


def field_line(name: str, value: str) -> bytes:
    """`Name: value` and CRLF; raises ValueError as `check_field`."""
    check_field(name, value)
    return f"{name}: {value}\r\n".encode("latin-1")


def check_status(status: int) -> None:
    """Raise TypeError or ValueError for what is not the status of a final response."""
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"a status is a whole number, not {status!r}")
    if not 200 <= status <= 599:
        raise ValueError(f"the status of a response is 200 to 599, not {status}")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _status_line(status: int) -> bytes:
    line = _STATUS_LINES.get(status)
    if line is not None:
        return line
    check_status(status)
    return f"HTTP/1.1 {status} {_reason(status)}\r\n".encode()


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in HTTPStatus
    if status >= 200  # after an informational one the client waits on (section 15.2)
}


_PREBUILT_FIELDS = {
    (name, value): field_line(name, value)
    for name, value in (
        ("Content-Type", JSON),
        ("Content-Type", TEXT),
        ("Content-Type", EVENT_STREAM),
        ("Cache-Control", "no-store"),
        _UNBUFFERED,
    )
}


def _request_id_line(request_id: str) -> bytes:
    if request_id.isascii() and request_id.isprintable():  # faster than the expressions
        return f"X-Request-Id: {request_id}\r\n".encode()
    return field_line("X-Request-Id", request_id)


# What this second's heads begin with: by status and server name their status line, Server and Date;
# with the length of a body and all fields also the lines of these.
MAX_KNOWN_STARTS = 256
MAX_KNOWN_START = 1024  # bytes
_starts: tuple[float, dict[tuple[Any, ...], bytes]] = (0.0, {})  # the second, and what is known


def _starts_of_now() -> dict[tuple[Any, ...], bytes]:
    """Empty at the beginning of a second. A race builds a start twice, which is harmless."""
    global _starts
    second, known = _starts
    now = time.time()
    if not 0.0 <= now - second < 1.0:
        known = {}
        _starts = (now // 1.0, known)
    return known


def _beginning(status: int, server: str) -> bytes:
    """RFC 9110 sections 6.6.1, 10.2.4."""
    known = _starts_of_now()
    beginning = known.get((status, server))
    if beginning is None:
        server_line = f"Server: {server}\r\n" if server else ""  # ServerConfig has checked it
        fields = f"{server_line}Date: {formatdate(int(time.time()), usegmt=True)}\r\n".encode()
        beginning = known[status, server] = _status_line(status) + fields
    return beginning
