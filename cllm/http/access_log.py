"""The access log, one line per request, and the request id that links it to the client's."""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets

from cllm.http.request import HttpRequest

_log = logging.getLogger("cllm.access")

# A client's id is used only if it can stand in a header field and in a log line unchanged.
_ID = re.compile(r"[0-9A-Za-z._:/+=@~\-]{1,128}")
_PLAIN = re.compile(r"[!#-<>-~]+")  # visible ASCII without '"' and "="

# Named, so that a logging handler that writes objects finds the values in the record's args.
_LINE = (
    "client=%(client)s method=%(method)s path=%(path)s status=%(status)d bytes=%(bytes)d "
    "ms=%(ms).2f id=%(id)s"
)

_prefix = secrets.token_hex(4) + "-"  # differs in each process
_next = itertools.count(1).__next__

CLIENT_LEFT = 499  # nginx's code: the response was not sent completely


def request_id(request: HttpRequest) -> str:
    """The client's X-Request-Id if it is usable, else a new one."""
    given = request.headers.get("x-request-id")
    if given is not None and _ID.fullmatch(given):
        return given
    return f"{_prefix}{_next():x}"


def enabled() -> bool:
    """Whether a line would be written anywhere."""
    return _log.isEnabledFor(logging.INFO)


def write(
    client: tuple[str, int],
    request: HttpRequest | None,
    status: int,
    size: int,
    seconds: float,
) -> None:
    """`client=… method=… path=… status=… bytes=… ms=… id=…`; "-" for bytes that were no request."""
    if request is None:
        method = path = identifier = "-"
    else:
        method, path, identifier = request.method, _quoted(request.path), request.id
    host = f"[{client[0]}]" if ":" in client[0] else client[0]
    _log.info(
        _LINE,
        {
            "client": f"{host}:{client[1]}", "method": method, "path": path, "status": status,
            "bytes": size, "ms": round(seconds * 1000, 2), "id": identifier,
        },
    )  # fmt: skip


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
