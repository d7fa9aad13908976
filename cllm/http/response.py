"""Responses: status, fields and body, and the bytes of their head; responses given later."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from cllm.http.body_stream import BodyStream, call_all, compact_json
from cllm.http.sse import EVENT_STREAM, PING

_log = logging.getLogger("cllm.http")

Octets = bytes  # the name `bytes` is a constructor inside HttpResponse

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
_UNBUFFERED = ("X-Accel-Buffering", "no")  # nginx's word; it otherwise collects a stream's pieces


class HttpResponse:
    """A response; its body is bytes or a BodyStream.

    `headers` must leave out what the connection decides: Connection, Content-Length, Date, Server
    and Transfer-Encoding. Those, and names or values that would break the head, make `encode_head`
    raise ValueError.
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
        """UTF-8 JSON, compact; raises TypeError or ValueError for what JSON has no form for."""
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

        Proxies that know X-Accel-Buffering pass each piece on as it comes.
        """
        content_type = content_type or stream.content_type
        if content_type == EVENT_STREAM:
            stream.ping = stream.ping or PING
        return cls(status, [("Content-Type", content_type), _UNBUFFERED, *headers], stream)

    @classmethod
    def sse(cls, stream: BodyStream, headers: Iterable[tuple[str, str]] = ()) -> HttpResponse:
        """Server-sent events that no cache keeps and no proxy collects.

        While the stream is quiet its `ping` is sent, a comment where it has none of its own.
        """
        return cls.stream(stream, EVENT_STREAM, headers=[("Cache-Control", "no-store"), *headers])

    @property
    def has_body(self) -> bool:
        """False where the status forbids one (RFC 9110 sections 15.3.5, 15.3.6, 15.4.5)."""
        return self.status not in _BODYLESS

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
            return self._encode_head(keep_alive, chunked, server, request_id)
        except TypeError as error:  # such as a number for a field's value
            raise ValueError(f"the response has a part of the wrong type: {error}") from error

    def _encode_head(
        self, keep_alive: bool, chunked: bool, server: str, request_id: str | None
    ) -> Octets:
        body = self.body
        parts = [_status_line(self.status), _server_line(server), _date_line()]
        if not self.has_body:
            if self.status == 205:
                parts.append(b"Content-Length: 0\r\n")
        elif isinstance(body, bytes):
            parts.append(b"Content-Length: %d\r\n" % len(body))
        elif not isinstance(body, BodyStream):
            raise TypeError(f"the body is a {type(body).__name__}; give bytes or a BodyStream")
        elif chunked:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif keep_alive:
            raise ValueError("a stream that is not chunked ends by closing the connection")
        for name_value in self.headers:
            parts.append(_PREBUILT_FIELDS.get(name_value) or field_line(*name_value))
        if request_id:
            parts.append(field_line("X-Request-Id", request_id))
        parts.append(_END_KEEP_ALIVE if keep_alive else _END_CLOSE)
        return b"".join(parts)

    def __repr__(self) -> str:
        body = "stream" if isinstance(self.body, BodyStream) else f"{len(self.body)} bytes"
        return f"<HttpResponse {self.status}, {body}>"


class DeferredResponse:
    """A response that another thread will give; the worker goes on meanwhile."""

    __slots__ = (
        "_cancel_callbacks",
        "_done_callbacks",
        "_lock",
        "_wake",
        "cancel_reason",
        "response",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self._cancel_callbacks: list[Callable[[str], object]] = []
        self._done_callbacks: list[Callable[[HttpResponse], None]] = []
        self.response: HttpResponse | None = None
        self.cancel_reason: str | None = None

    def resolve(self, response: HttpResponse) -> bool:
        """Give the response; True for the first one given before a cancellation. Any thread.

        A stream in a response that comes too late is cancelled. For what is no HttpResponse the
        client is answered 500, and TypeError raised here.
        """
        if not _is_response(response):
            self.resolve(_failure())
            raise TypeError(f"a {type(response).__name__} is not an HttpResponse")
        with self._lock:
            late = self.response is not None or self.cancel_reason is not None
            if not late:
                self.response = response
                self._cancel_callbacks.clear()
                done, self._done_callbacks = self._done_callbacks, []
                wake = self._wake
        if late:
            if isinstance(response.body, BodyStream):
                response.body.cancel(self.cancel_reason or "another response was given")
            return False
        for callback in done:
            callback(response)
        if wake is not None:
            wake()
        return True

    def cancel(self, reason: str) -> bool:
        """There will be no response; False where it was there already. Any thread.

        By the connection: nobody waits for it any more. By the producer: a client that still waits
        is answered 503 with the reason.
        """
        with self._lock:
            if self.response is not None or self.cancel_reason is not None:
                return False
            self.cancel_reason = reason
            callbacks, self._cancel_callbacks = self._cancel_callbacks, []
            self._done_callbacks.clear()
            wake = self._wake
        call_all(callbacks, reason)
        if wake is not None:
            wake()
        return True

    @property
    def cancelled(self) -> bool:
        return self.cancel_reason is not None

    def on_cancel(self, callback: Callable[[str], object]) -> None:
        """Call `callback(reason)` when nobody waits any more: client gone, deadline, server stop.

        At once where that already happened; never once the response is given.
        """
        with self._lock:
            if self.cancel_reason is None:
                if self.response is None:
                    self._cancel_callbacks.append(callback)
                return
        callback(self.cancel_reason)

    def attach(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, when the response is there or will not be.

        At once where that is known.
        """
        with self._lock:
            self._wake = wake
            ready = self.response is not None or self.cancel_reason is not None
        if ready:
            wake()

    def then(self, change: Callable[[HttpResponse], HttpResponse]) -> DeferredResponse:
        """The response that `change` makes of this one, for middleware; cancelling goes both ways.

        `change` runs on the thread that resolves, and must be quick. An exception in it is logged
        and gives a bare 500.
        """
        changed = DeferredResponse()
        changed.on_cancel(self.cancel)

        def pass_on(response: HttpResponse) -> None:
            try:
                result = change(response)
                if not _is_response(result):
                    raise TypeError(f"the middleware gave a {type(result).__name__}")
            except BaseException as error:
                _log.exception("a middleware failed on a deferred response")
                if isinstance(response.body, BodyStream):
                    response.body.cancel(f"a middleware failed: {error}")
                result = _failure()
            changed.resolve(result)

        with self._lock:
            response = self.response
            if response is None:
                self._done_callbacks.append(pass_on)
        if response is not None:
            pass_on(response)
        self.on_cancel(changed.cancel)
        return changed


def _is_response(value: object) -> bool:
    return isinstance(value, HttpResponse)


def _failure() -> HttpResponse:
    return HttpResponse.json({"success": False, "error": "internal error"}, 500)


# RFC 9110 sections 15.3.5, 15.3.6, 15.4.5
_BODYLESS = frozenset((204, 205, 304))

_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# What the connection writes itself; a second one would make two framings of one response.
_RESERVED = frozenset(("connection", "content-length", "date", "server", "transfer-encoding"))

_END_KEEP_ALIVE = b"Connection: keep-alive\r\n\r\n"
_END_CLOSE = b"Connection: close\r\n\r\n"

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def field_line(name: str, value: str) -> bytes:
    """`Name: value` and CRLF; raises ValueError for what would break out of the line."""
    if not _FIELD_NAME.fullmatch(name) or name.lower() in _RESERVED:
        raise ValueError(f"a response cannot set the field {name!r}")
    if not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"the response field {name} has a value that cannot be sent: {value!r}")
    return f"{name}: {value}\r\n".encode("latin-1")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _status_line(status: int) -> bytes:
    line = _STATUS_LINES.get(status)
    if line is not None:
        return line
    if isinstance(status, bool) or not isinstance(status, int):
        raise TypeError(f"a status is a whole number, not {status!r}")
    if not 200 <= status <= 599:
        raise ValueError(f"the status of a response is 200 to 599, not {status}")
    return f"HTTP/1.1 {status} {_reason(status)}\r\n".encode()


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    for status in HTTPStatus
    if status >= 200  # an informational one is no answer: the client would wait on (section 15.2)
}


@lru_cache(maxsize=8)
def _server_line(server: str) -> bytes:
    """RFC 9110 section 10.2.4; ServerConfig has checked the name."""
    return f"Server: {server}\r\n".encode() if server else b""


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

_date: tuple[int, bytes] = (0, b"")


def _date_line() -> bytes:
    """RFC 9110 section 6.6.1; built once a second. A race builds it twice, which does no harm."""
    global _date
    now = int(time.time())
    second, line = _date
    if second != now:
        line = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
        _date = (now, line)
    return line
