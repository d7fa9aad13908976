"""The grammar of a request head: request line and fields to a `Head` (RFC 9110, RFC 9112).

Expressions are named after the RFCs' productions. They work on the head decoded as latin-1, which
maps every byte to the character of the same number, so that one decoding serves all fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

from cllm.http.errors import ProtocolError
from cllm.http.limits import Limits
from cllm.http.request import NO_CLIENT, Headers, HttpRequest, decode_path

CRLF = b"\r\n"

# RFC 9110 section 5.6.2
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# RFC 9110 section 5.5: field-vchar, SP and HTAB; obs-text is let through uninterpreted.
FIELD_CONTENT = r"[\t\x20-\x7e\x80-\xff]*"
# RFC 9112 section 5. Each match is one line, since the value cannot contain CR or LF. It must start
# at a line's start, and blanks are stripped afterwards: searching at each character of a line
# without a colon, or skipping blanks here, takes quadratic time.
FIELD_LINES = re.compile(f"(?<![^\n])({TOKEN}):({FIELD_CONTENT})\r\n")
# RFC 9112 section 3, with single spaces as section 3 writes it (none of its optional leniency).
REQUEST_LINE = re.compile(f"({TOKEN}) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\\.([0-9])")
# RFC 9112 section 3.2.1. More characters than RFC 3986 allows, because clients send `|` or `{`
# unencoded; never "#", which begins a fragment and is not part of a target.
ORIGIN_FORM = re.compile(r"(/[!\"$->@-~]*)(?:\?([!\"$-~]*))?")
# RFC 9112 section 3.2.2. Authority and path split in one way only, again for linear time.
ABSOLUTE_FORM = re.compile(
    r"https?://([^/?#\x80-\xff]*)((?:/[!\"$->@-~]*)?)(?:\?([!\"$-~]*))?", re.IGNORECASE
)
# RFC 3986 section 3.2.2: IP-literal or reg-name (which takes in IPv4address), and a port.
_REG_NAME = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*"
_IP_LITERAL = r"\[(?:[0-9A-Fa-f:.]+|[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+,;=:]+)\]"
HOST = re.compile(f"({_IP_LITERAL}|{_REG_NAME})(?::([0-9]{{0,5}}))?")
# RFC 9110 section 5.6.4
QUOTED_STRING = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# RFC 9112 section 7: a token and parameters; chunked has none
TRANSFER_CODING = re.compile(
    f"{TOKEN}(?:[ \t]*;[ \t]*{TOKEN}[ \t]*=[ \t]*(?:{TOKEN}|{QUOTED_STRING}))*"
)
# RFC 9110 section 8.6
CONTENT_LENGTH = re.compile("[0-9]+")
MAX_LENGTH_DIGITS = 19  # every length below 2**63

# Bytes that no head may have: a CR or LF that is not half of a CRLF (RFC 9112 section 2.2), and
# controls but HTAB (RFC 9110 section 5.5).
NOT_IN_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n")

# X-Request-Id of a client, used only if it can stand in a field and in a log line unchanged
REQUEST_ID = re.compile(r"[0-9A-Za-z._:/+=@~\-]{1,128}")

MAX_REMEMBERED = 512  # heads
MAX_REMEMBERED_SIZE = 1024  # bytes; longer heads rarely repeat
# Fields with a client's secret: never remembered
SECRETS = ("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key")


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed head; immutable, so that requests with the same head share one."""

    method: str
    target: str
    path: str
    query_string: str
    version: str
    headers: Headers
    keep_alive: bool
    length: int  # of the body; 0 for a chunked one
    chunked: bool
    expects_continue: bool
    request_id: str  # the client's, if it can be used

    def request(self, body: bytes = b"") -> HttpRequest:
        """A request with this head."""
        request = HttpRequest.__new__(HttpRequest)  # its __init__ takes twice as long
        request.method = self.method
        request.target = self.target
        request.path = self.path
        request.query_string = self.query_string
        request.version = self.version
        request.headers = self.headers
        request.body = body
        request.keep_alive = self.keep_alive
        request.client = NO_CLIENT
        request.id = self.request_id
        request.path_params = {}
        request.context = {}
        return request


@lru_cache(maxsize=8)
def remembered_heads(limits: Limits) -> dict[bytes, Head]:
    """Recently parsed heads under these limits: a client on keep-alive repeats its head exactly.

    Shared by all threads; each access is one dictionary operation, which the interpreter makes
    atomic. Bounded by `MAX_REMEMBERED` heads of `MAX_REMEMBERED_SIZE`.
    """
    return {}


def remember(heads: dict[bytes, Head], raw: bytes, head: Head) -> None:
    """Keep a parsed head if it is small and has no secret; clear the table when it is full.

    raw: with its empty line.
    """
    if len(raw) <= MAX_REMEMBERED_SIZE and not any(name in head.headers for name in SECRETS):
        if len(heads) >= MAX_REMEMBERED:
            heads.clear()
        heads[raw] = head


def check_section(
    data: bytes | bytearray,
    scan: int,
    stop: int,
    too_long: Iterable[tuple[int, ProtocolError]],
) -> None:
    """Raise the error that comes first: a byte that no head may contain, or a limit passed.

    `data` from `scan` to `stop` has not been checked before; `too_long` has the index of the byte
    that passes each limit.
    """
    errors = list(too_long)
    found = NOT_IN_HEAD.search(data, scan, stop)
    if found is not None:
        byte = data[found.start()]
        name = {10: "a bare LF", 13: "a bare CR", 0: "a NUL"}.get(
            byte, f"control byte 0x{byte:02x}"
        )
        # Last, so that a limit passed by the same byte wins: only the next byte shows whether a CR
        # is a bare one.
        errors.append((found.start(), ProtocolError(400, f"the head has {name}")))
    if errors:
        raise min(errors, key=lambda item: item[0])[1]


def parse_head(raw: bytes, limits: Limits) -> Head:
    """Parse a request line and its fields, each with its CRLF, after `check_section`.

    Raises ProtocolError 400, 417, 431, 501, 505.
    """
    text = raw.decode("latin-1")
    line_end = text.index("\r\n")
    line = REQUEST_LINE.fullmatch(text, 0, line_end)
    if line is None:
        raise ProtocolError(400, "the request line is not 'METHOD target HTTP/1.1'")
    method, target, major, minor = line.groups()
    if major != "1":
        raise ProtocolError(505, "this server supports HTTP/1.1 and HTTP/1.0 only")
    # RFC 9110 section 2.5: a later minor version is understood as the latest that is known.
    version = "HTTP/1.0" if minor == "0" else "HTTP/1.1"
    if method == "CONNECT":
        raise ProtocolError(501, "CONNECT is not supported: this is not a proxy")
    return build_head(method, target, version, parse_fields(text[line_end + 2 :]), limits)


def build_head(
    method: str, target: str, version: str, fields: list[tuple[str, str]], limits: Limits
) -> Head:
    """A head of parts that are valid by themselves; checks what they mean together.

    In HTTP/2 the caller gives `:authority` as the field Host. Raises ProtocolError 400, 417, 431,
    501.
    """
    if len(fields) > limits.fields:
        raise ProtocolError(431, f"the head has more than {limits.fields} fields")
    headers = Headers(fields)
    host = _host(headers, version)
    path, query, authority = _parse_target(method, target)
    if authority is not None and host == "":
        # Section 3.2: a client repeats the authority of its target in Host. Other values are
        # ignored, but a proxy in front may have mapped an empty one to its default host.
        raise ProtocolError(400, "Host is empty, but the target has a host; send the same in both")
    if authority is not None and authority != host:
        # RFC 9112 section 3.2.2: Host is ignored if the target is in absolute-form.
        rest = [field for field in fields if field[0].lower() != "host"]
        headers = Headers([("Host", authority), *rest])
    length, chunked = _framing(headers, version)
    return Head(
        method=method,
        target=target,
        path=path,
        query_string=query,
        version=version,
        headers=headers,
        keep_alive=_keep_alive(headers, version),
        length=length,
        chunked=chunked,
        expects_continue=_expects_continue(headers, version),
        request_id=_request_id(headers),
    )


def parse_fields(text: str) -> list[tuple[str, str]]:
    """Field lines, each with its CRLF, to names and values; raises ProtocolError 400."""
    fields = FIELD_LINES.findall(text)
    # Shorter if the expression skipped something: each line also has a colon and a CRLF.
    if sum(len(name) + len(value) for name, value in fields) + 3 * len(fields) != len(text):
        raise ProtocolError(400, _bad_field(text))
    return [(name, value.strip(" \t")) for name, value in fields]


def _bad_field(text: str) -> str:
    for line in text.split("\r\n"):
        if not FIELD_LINES.fullmatch(line + "\r\n"):
            break
    if line.startswith((" ", "\t")):
        return "a field line begins with a blank; folded lines are not taken"
    name, colon, _ = line.partition(":")
    if not colon:
        return "a field line has no colon"
    if name.rstrip(" \t") != name:
        return "a field line has a blank before its colon"
    return "a field name is not a token"


def _host(headers: Headers, version: str) -> str | None:
    """Host, RFC 9112 section 3.2: exactly one in HTTP/1.1, at most one in HTTP/1.0, and valid."""
    hosts = headers.get_all("host")
    if len(hosts) > 1:
        raise ProtocolError(400, "the request has more than one Host")
    if not hosts:
        if version == "HTTP/1.1":
            raise ProtocolError(400, "an HTTP/1.1 request needs a Host")
        return None
    if hosts[0] and not _is_authority(hosts[0]):  # an empty one means this server
        raise ProtocolError(400, "Host is not a host and an optional port")
    return hosts[0]


def _is_authority(text: str) -> bool:
    """Whether it is a non-empty host (RFC 9110 section 4.2.1) and an optional port."""
    match = HOST.fullmatch(text)
    if match is None or not match[1] or int(match[2] or 0) > 65535:
        return False
    if match[1].startswith("[") and match[1][1] not in "vV":
        try:
            IPv6Address(match[1][1:-1])
        except ValueError:
            return False
    return True


def _parse_target(method: str, target: str) -> tuple[str, str, str | None]:
    """(path, query, authority of an absolute-form), RFC 9112 section 3.2."""
    if target == "*":
        if method != "OPTIONS":
            raise ProtocolError(400, "the target '*' is for OPTIONS only")
        return "*", "", None
    origin = ORIGIN_FORM.fullmatch(target)
    if origin is not None:
        return decode_path(origin[1]), origin[2] or "", None
    absolute = ABSOLUTE_FORM.fullmatch(target)
    if absolute is None:
        raise ProtocolError(
            400, "the target is neither a path nor an http URL; percent-encode what is not ASCII"
        )
    authority, path, query = absolute.groups()
    if not _is_authority(authority):
        raise ProtocolError(400, "the target's authority is not a host and an optional port")
    if not path:
        # RFC 9110 section 4.2.3: an empty path is "/", but not for OPTIONS.
        path = "*" if method == "OPTIONS" and query is None else "/"
    return decode_path(path), query or "", authority


def _framing(headers: Headers, version: str) -> tuple[int, bool]:
    """(length, chunked) of the body: RFC 9112 section 6, without the leniency it permits."""
    lengths = headers.get_all("content-length")
    codings = headers.get("transfer-encoding")
    if codings is not None:
        if version == "HTTP/1.0":
            raise ProtocolError(400, "HTTP/1.0 has no Transfer-Encoding")
        if lengths:
            raise ProtocolError(
                400, "a request cannot have both Content-Length and Transfer-Encoding"
            )
        _check_codings([coding.strip(" \t") for coding in codings.split(",")])
        return 0, True
    if not lengths:
        return 0, False
    if len(lengths) > 1 or not CONTENT_LENGTH.fullmatch(lengths[0]):
        raise ProtocolError(400, "Content-Length must be one decimal number")
    digits = lengths[0].lstrip("0")
    # int() is slow for thousands of digits, and newer Pythons refuse them.
    return int(digits[: MAX_LENGTH_DIGITS + 1] or "0"), False


def _check_codings(codings: list[str]) -> None:
    """RFC 9112 sections 6.1, 6.3 and 7: only chunked is decoded here."""
    if not all(map(TRANSFER_CODING.fullmatch, codings)):
        raise ProtocolError(400, "Transfer-Encoding is not a list of transfer codings")
    *others, final = (coding.lower() for coding in codings)
    if final != "chunked":  # the body's end cannot be found
        raise ProtocolError(400, "the last transfer coding of a request must be chunked")
    if "chunked" in others:
        raise ProtocolError(400, "the transfer coding chunked may be applied only once")
    if others:
        raise ProtocolError(501, "the only supported transfer coding is chunked")


def _keep_alive(headers: Headers, version: str) -> bool:
    """RFC 9112 section 9.3."""
    options = _list(headers.get("connection", ""))
    if "close" in options:
        return False
    return version != "HTTP/1.0" or "keep-alive" in options


def _expects_continue(headers: Headers, version: str) -> bool:
    """RFC 9110 section 10.1.1."""
    expectations = _list(headers.get("expect", ""))
    if not expectations:
        return False
    if any(expectation != "100-continue" for expectation in expectations):
        raise ProtocolError(417, "the only supported expectation is 100-continue")
    return version != "HTTP/1.0"  # one in HTTP/1.0 is to be ignored


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if given and REQUEST_ID.fullmatch(given) else ""


def _list(value: str | None) -> list[str]:
    """RFC 9110 section 5.6.1, in lower case."""
    items = (item.strip(" \t").lower() for item in (value or "").split(","))
    return [item for item in items if item]
