"""A request as handlers see it: method, path, header fields, whole body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from cllm.http.errors import HttpError, ProtocolError


class Headers:
    """Header fields: ordered, immutable, names compared without case (RFC 9110 section 5.1).

    `get` and `[]` return a repeated field's lines joined by ", " (section 5.3); `get_all` returns
    each line.
    """

    __slots__ = ("_fields", "_lines")

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = tuple(fields)
        lines: dict[str, list[str]] = {}
        for name, value in self._fields:
            lines.setdefault(name.lower(), []).append(value)
        self._lines = lines

    def get(self, name: str, default: str | None = None) -> str | None:
        values = self._lines.get(name.lower())
        return default if values is None else ", ".join(values)

    def get_all(self, name: str) -> list[str]:
        return list(self._lines.get(name.lower(), ()))

    def items(self) -> Iterator[tuple[str, str]]:
        """Every line in order, names as the peer wrote them."""
        return iter(self._fields)

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._lines[name.lower()])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._lines

    def __iter__(self) -> Iterator[str]:
        """The names in lower case, each once."""
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields)

    def __repr__(self) -> str:
        return f"Headers({list(self._fields)!r})"


NO_HEADERS = Headers()
NO_CLIENT = ("", 0)


@dataclass(slots=True)
class HttpRequest:
    """One complete request. `path_params` is filled by the router, `context` by middleware."""

    method: str
    target: str  # as the peer wrote it
    path: str  # percent-decoded once, without the query; "*" for OPTIONS *
    query_string: str = ""  # as the peer wrote it
    version: str = "HTTP/1.1"
    headers: Headers = NO_HEADERS
    body: bytes = b""
    keep_alive: bool = True  # as the peer requests (RFC 9112 section 9.3)
    client: tuple[str, int] = NO_CLIENT
    id: str = ""
    path_params: dict[str, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> HttpRequest:
        """A request for calling a handler without a socket.

        Raises ProtocolError 400 for a path that the server would refuse.
        """
        path, _, query = target.partition("?")
        return cls(method, target, decode_path(path), query, "HTTP/1.1", Headers(headers), body)

    def without_body(self) -> HttpRequest:
        """The same request with an empty body; everything else is shared."""
        return HttpRequest(
            self.method, self.target, self.path, self.query_string, self.version, self.headers,
            b"", self.keep_alive, self.client, self.id, self.path_params, self.context,
        )  # fmt: skip

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded; the last one of a repeated name."""
        if not self.query_string:
            return {}
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    def text(self) -> str:
        """The body as UTF-8; raises HttpError 400 if it is not."""
        try:
            return self.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HttpError(
                400, f"the body is not UTF-8 (byte {error.start}); send UTF-8"
            ) from None

    def json(self) -> Any:
        """The body as JSON; raises HttpError 400 with the position of the error."""
        if not self.body:
            raise HttpError(400, "the body is empty; send JSON")
        text = self.text()
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise HttpError(
                400,
                f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            ) from None
        except (ValueError, RecursionError):
            # An integer past sys.get_int_max_str_digits(), or nesting past the recursion limit.
            raise HttpError(
                400, "the body's JSON has too long a number or nests too deep"
            ) from None


_PERCENT_INVALID = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def decode_path(raw: str) -> str:
    """Percent-decode an absolute path once (RFC 3986 section 2.1).

    It refuses control characters, which no resource has and which could forge log lines, and the
    segments "." and "..", which a client removes before it sends (section 5.2.4). With
    normalization here, this server and a proxy in front of it would see two paths.
    Raises ProtocolError 400.
    """
    path = raw
    if "%" in raw:
        if _PERCENT_INVALID.search(raw):
            raise ProtocolError(400, "the path has a '%' that is not followed by two hex digits")
        try:
            path = unquote_to_bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError(400, "the path's percent-encoding is not UTF-8") from None
        if _CONTROL.search(path):
            raise ProtocolError(400, "the path has an encoded control character")
    if "/." in path:
        segments = path.split("/")
        if "." in segments or ".." in segments:
            raise ProtocolError(400, "the path has a '.' or '..' segment; send it without")
    return path
