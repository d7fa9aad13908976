"""Anthropic's envelope of errors."""

from __future__ import annotations

from typing import Any

from cllm.api.envelopes import JSON, encode
from cllm.http import HttpError, HttpResponse

# Status -> type of the error.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def envelope(status: int, message: str) -> dict[str, Any]:
    """The error as an object; also the data of a stream's event."""
    usual = "api_error" if status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": _TYPES.get(status, usual), "message": message}}


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """The envelope as a body and its type."""
    return encode(envelope(status, message)), JSON


def refused(error: HttpError) -> HttpResponse:
    """The envelope as a response."""
    body, content_type = error_body(error.status, error.message)
    return HttpResponse.bytes(body, content_type, error.status, error.headers)
