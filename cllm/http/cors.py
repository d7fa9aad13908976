"""Cross-origin resource sharing as a middleware (WHATWG Fetch section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cllm.http.deferred import DeferredResponse
from cllm.http.handler import Answer, Middleware, Next
from cllm.http.request import HttpRequest
from cllm.http.response import HttpResponse

METHODS = "GET, POST, DELETE, OPTIONS"  # HEAD needs no permission
EXPOSED = "*"  # every field, in responses to requests without cookies
_LOCAL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?")
MAX_AGE = 600  # seconds a browser remembers a preflight; Chromium caps at 7200


def cors(origins: Sequence[str], credentials: bool = False) -> Middleware:
    """A middleware that lets pages of these origins read the responses.

    "*" means any page, "localhost" those of this machine.

    It must be outermost, since a preflight carries no credentials for an inner middleware to check.
    A server wraps its handler with it and leaves the handler unchanged:

        allow = cors(config.cors_origins)
        response = allow(request, handler.handle_request)

    credentials: allow requests in credentials mode too. No API here uses cookies, but pages written
    for other servers may ask for it; the response then names the origin instead of "*".
    """
    anyone = "*" in origins
    allowed = frozenset(origin.lower() for origin in origins)
    local = "localhost" in allowed

    def allow(request: HttpRequest, next: Next) -> Answer:
        origin = request.headers.get("origin")
        if anyone and not credentials:
            fields = [("Access-Control-Allow-Origin", "*")] if origin else []
        elif origin is not None and (
            anyone or origin.lower() in allowed or (local and _LOCAL.fullmatch(origin.lower()))
        ):
            fields = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
            if credentials:
                fields.append(("Access-Control-Allow-Credentials", "true"))
        else:
            # A cache must not give this response, which lacks the field, to an allowed page.
            vary = [("Vary", "Origin")]
            if origin is not None and _is_preflight(request):
                return HttpResponse.empty(200, vary)
            return _with_fields(next(request), vary)
        if not fields:
            return next(request)
        if _is_preflight(request):
            return HttpResponse.empty(200, [*fields, *_preflight(request)])
        return _with_fields(next(request), [*fields, ("Access-Control-Expose-Headers", EXPOSED)])

    return allow


def _is_preflight(request: HttpRequest) -> bool:
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


def _preflight(request: HttpRequest) -> list[tuple[str, str]]:
    fields = [
        ("Access-Control-Allow-Methods", METHODS),
        ("Access-Control-Max-Age", str(MAX_AGE)),
    ]
    wanted = request.headers.get("access-control-request-headers")
    if wanted:
        fields.append(("Access-Control-Allow-Headers", wanted))
    return fields


def _with_fields(answer: Answer, fields: list[tuple[str, str]]) -> Answer:
    if isinstance(answer, DeferredResponse):
        return answer.then(lambda response: _add(response, fields))
    return _add(answer, fields)


def _add(response: HttpResponse, fields: list[tuple[str, str]]) -> HttpResponse:
    """A new response: the handler may return the same object every time."""
    return HttpResponse(response.status, [*response.headers, *fields], response.body)
