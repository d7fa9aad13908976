"""llama-server's envelope of errors (format_error_response in its source)."""

from __future__ import annotations

from cllm.api.responses import JSON, encode
from cllm.http import HttpError, HttpResponse

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """The envelope and its type."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    error = {"code": status, "message": message, "type": _TYPES.get(status, usual)}
    return encode({"error": error}), JSON


def refused(error: HttpError) -> HttpResponse:
    """The envelope as a response."""
    body, content_type = error_body(error.status, error.message)
    return HttpResponse.bytes(body, content_type, error.status, error.headers)
