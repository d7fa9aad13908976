"""llama-server's error format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cllm.api.envelopes import JSON, encode
from cllm.http import HttpError, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import PromptTooLong

# server-common.cpp, format_error_response
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """``{"error": {"code", "message", "type"}}``."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    error = {"code": status, "message": message, "type": _TYPES.get(status, usual)}
    return encode({"error": error}), JSON


def refused(error: HttpError) -> HttpResponse:
    """The same as a response."""
    body, content_type = error_body(error.status, error.message)
    return HttpResponse.bytes(body, content_type, error.status, error.headers)


def too_long(error: PromptTooLong) -> HttpResponse:
    """400 with the lengths, which clients use to shorten a prompt and retry."""
    described = {
        "code": 400,
        "message": str(error),
        "type": "exceed_context_size_error",
        "n_prompt_tokens": error.prompt_tokens,
        "n_ctx": error.ctx_size,
    }
    return HttpResponse.bytes(encode({"error": described}), JSON, 400)
