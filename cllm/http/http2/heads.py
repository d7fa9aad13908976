"""Heads in HTTP/2: header blocks to the `Head` of a request, responses to header blocks.

RFC 9113 section 8. A malformed request resets its stream. What HTTP/1.1 also refuses gets the same
answer here as there.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache

from cllm.http.errors import ProtocolError
from cllm.http.head import FIELD_CONTENT, TOKEN, Head, build_head
from cllm.http.http2.errors import ErrorCode, Http2ConnectionError, Http2StreamError
from cllm.http.http2.hpack import (
    ENTRY_OVERHEAD,
    NEVER_INDEXED,
    CompressionError,
    Decoder,
    Field,
    HeaderListTooLarge,
    encode_field,
    encode_status,
)
from cllm.http.limits import Limits
from cllm.http.response import HttpResponse, check_field, check_status

# Section 8.2.1: field names have no capitals.
_NAME = re.compile(TOKEN)
_VALUE = re.compile(FIELD_CONTENT)
_CAPITAL = re.compile("[A-Z]")
# Section 8.2.2
_OF_THE_CONNECTION = frozenset(
    ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
)
_PSEUDO = frozenset((":method", ":scheme", ":authority", ":path"))

VERSION = "HTTP/2"

# Bytes of a connection's remembered heads: their blocks, and their fields as section 6.5.2 counts
# them. A block of indices is much smaller than its fields.
MAX_REMEMBERED = 16 * 1024


class HeadReader:
    """The request heads of one connection.

    A block that leaves the dynamic table as it was has the same fields when it comes again, until
    the table changes. So its head is remembered, with the secrets that it may have: the memory is
    this connection's alone.
    """

    __slots__ = ("_decoder", "_heads", "_limits", "_remembered", "_seen")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = Decoder(limits.head, limits.fields + len(_PSEUDO))
        self._heads: dict[bytes, Head] = {}
        self._remembered = 0  # bytes, of MAX_REMEMBERED
        self._seen = 0  # the decoder's changes when the heads were remembered

    def read(self, stream: int, block: bytes) -> Head:
        """The head of a request.

        Raises ProtocolError for what gets a response, Http2StreamError for what is malformed,
        Http2ConnectionError.
        """
        head = self._heads.get(block)
        if head is None:
            before = self._decoder.changes
            fields = self._decode(block)
            try:
                head = _head(stream, fields, self._limits)
            except ProtocolError as error:
                error.to_head = _HEAD_METHOD in fields
                raise
            if self._decoder.changes == before:
                self._remember(block, fields, head)
        return head

    def _remember(self, block: bytes, fields: list[Field], head: Head) -> None:
        size = len(block) + sum(len(name) + len(value) + ENTRY_OVERHEAD for name, value in fields)
        if size <= MAX_REMEMBERED:
            if self._remembered + size > MAX_REMEMBERED:
                self._forget()
            self._heads[block] = head
            self._remembered += size

    def _forget(self) -> None:
        self._heads.clear()
        self._remembered = 0

    def read_trailers(self, stream: int, block: bytes) -> None:
        """Check trailers, which the server drops (RFC 9110 section 6.5.1); raises as `read`."""
        for name, value in self._decode(block):
            if name.startswith(":"):
                raise _malformed(stream, "the trailers have a pseudo-header field")
            _check(stream, name, value)

    def skip(self, block: bytes) -> None:
        """Decode a block that is not used, to keep the table right. Raises Http2ConnectionError."""
        try:
            self._decode(block)
        except ProtocolError:
            return  # it is too large, and decoded all the same

    def _decode(self, block: bytes) -> list[Field]:
        try:
            return self._decoder.decode(block)
        except CompressionError as error:
            raise Http2ConnectionError(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        except HeaderListTooLarge as error:
            limits = self._limits
            refusal = ProtocolError(
                431, f"the head has more than {limits.head} bytes or {limits.fields} fields"
            )
            refusal.to_head = _HEAD_METHOD in error.fields
            raise refusal from None
        finally:
            if self._decoder.changes != self._seen:
                self._seen = self._decoder.changes
                self._forget()


def _head(stream: int, fields: list[Field], limits: Limits) -> Head:
    """Section 8.3.1"""
    pseudo: dict[str, str] = {}
    regular: list[Field] = []
    cookies: list[str] = []
    for name, value in fields:
        if name.startswith(":"):
            if regular or cookies:
                raise _malformed(stream, f"{name} follows a regular field")
            if name not in _PSEUDO or name in pseudo:
                raise _malformed(stream, f"{name[:40]!r} is unknown or repeated")
            if not _VALUE.fullmatch(value):
                raise _malformed(stream, f"{name} has a control character")
            pseudo[name] = value
            continue
        _check(stream, name, value)
        if name == "cookie":
            cookies.append(value)
        else:
            regular.append((name, value))
    if cookies:  # section 8.2.3
        regular.append(("cookie", "; ".join(cookies)))
    method = pseudo.get(":method", "")
    if not _NAME.fullmatch(method):
        raise _malformed(stream, ":method is missing or not a token")
    if method == "CONNECT":
        raise ProtocolError(501, "CONNECT is not supported: this is not a proxy")
    target = pseudo.get(":path", "")
    if not (target.startswith("/") or target == "*"):
        raise _malformed(stream, ":path is missing or does not begin with '/'")
    scheme = pseudo.get(":scheme")
    if not scheme:
        raise _malformed(stream, ":scheme is missing")
    if scheme.lower() not in ("http", "https"):
        raise ProtocolError(400, "the scheme is neither http nor https")
    if len(target) > limits.request_line:
        raise ProtocolError(414, f"the path is longer than {limits.request_line} bytes")
    authority = pseudo.get(":authority")
    hosts = [value for name, value in regular if name == "host"]
    if not (authority or hosts) or "" in (authority, *hosts):
        raise _malformed(stream, ":authority and Host are missing, or one is empty")
    if authority is not None:
        if any(host.lower() != authority.lower() for host in hosts):
            raise _malformed(stream, ":authority and Host differ")
        regular = [("host", authority), *(field for field in regular if field[0] != "host")]
    return build_head(method, target, VERSION, regular, limits)


def _check(stream: int, name: str, value: str) -> None:
    """Section 8.2"""
    if not _NAME.fullmatch(name) or _CAPITAL.search(name):
        raise _malformed(stream, "a field name is not a token in lower case")
    if not _VALUE.fullmatch(value) or value != value.strip(" \t"):
        raise _malformed(stream, f"{name} has a control character or a blank at an end")
    if name in _OF_THE_CONNECTION or (name == "te" and value.lower() != "trailers"):
        raise _malformed(stream, f"{name} is a field of connections, which HTTP/2 does not have")


def _malformed(stream: int, text: str) -> Http2StreamError:
    return Http2StreamError(stream, ErrorCode.PROTOCOL_ERROR, text)


_HEAD_METHOD = (":method", "HEAD")
CONTINUE = encode_status(100)

MAX_CACHED = 64  # characters of a response field's value


def response_block(response: HttpResponse, server: str, request_id: str | None) -> bytes:
    """The header block of a response; raises ValueError for what cannot be sent."""
    try:
        parts = [_beginning(response.status, server)]
        length = response.content_length()  # checks the body's type
        if length is not None:
            parts.append(encode_field("content-length", str(length)))
        for name, value in response.headers:
            repeats = len(value) <= MAX_CACHED and name.lower() not in NEVER_INDEXED
            parts.append(_cached_field(name, value) if repeats else _field(name, value))
        if request_id:
            check_field("X-Request-Id", request_id)
            parts.append(encode_field("x-request-id", request_id))
    except TypeError as error:  # such as a number for a field's value
        raise ValueError(f"the response has a part of the wrong type: {error}") from error
    return b"".join(parts)


# The beginnings of the responses of one second, by status and server
_beginnings: tuple[int, dict[tuple[int, str], bytes]] = (0, {})


def _beginning(status: int, server: str) -> bytes:
    """`:status`, Date and Server. A race builds it twice, which is harmless."""
    global _beginnings
    now = int(time.time())
    second, known = _beginnings
    if second != now:
        known = {}
        _beginnings = (now, known)
    found = known.get((status, server))
    if found is None:
        check_status(status)
        found = encode_status(status) + encode_field("date", formatdate(now, usegmt=True))
        if server:
            found += encode_field("server", server)
        known[status, server] = found
    return found


def _field(name: str, value: str) -> bytes:
    """One field of a response. Raises ValueError for what cannot be sent."""
    check_field(name, value)
    lower = name.lower()
    if lower in _OF_THE_CONNECTION:
        return b""  # it is about an HTTP/1.1 connection
    return encode_field(lower, value.strip(" \t"))


# The same fields come with most responses. Shared by all connections, so without secrets.
_cached_field = lru_cache(maxsize=256)(_field)
