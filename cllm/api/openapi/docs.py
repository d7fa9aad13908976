"""``/docs``: a page that shows ``/openapi.json`` and sends requests to try them.

Its files contain no secret and need no key; the page asks for one. Nothing is loaded from
elsewhere, and the policy (CSP Level 3) lets only these files run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from cllm.http import HttpRequest, HttpResponse

_FILES: Mapping[str, tuple[str, str]] = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
_FOLDER = Path(__file__).parent / "static"
_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)

PATHS = tuple(_FILES)


def page(request: HttpRequest) -> HttpResponse:
    """GET ``/docs`` and its files."""
    _, kind = _FILES[request.path]
    return HttpResponse.bytes(_read(request.path), kind, 200, _HEADERS)


def content_type(path: str) -> str:
    """The type of the file, without its encoding."""
    return _FILES[path][1].partition(";")[0]


@cache
def _read(path: str) -> bytes:
    return (_FOLDER / _FILES[path][0]).read_bytes()
