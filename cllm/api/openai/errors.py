"""OpenAI's envelope of errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cllm.api.envelopes import JSON, encode
from cllm.http import HttpError, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import PromptTooLong

# Status -> OpenAI's type and code of the error.
_KINDS = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    408: ("timeout_error", "timeout"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    501: ("not_supported_error", "not_supported"),
    503: ("service_unavailable_error", "unavailable"),
}
_FIELD = re.compile(r"([a-z_]+(?:[.\[][\w.\[\]]*)?): ")


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """The envelope and its type; `param` is the field that the message begins with."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    kind, code = _KINDS.get(status, (usual, None))
    field = _FIELD.match(message) if status == 400 else None
    param = field[1] if field else None
    return _envelope(message, kind, param, code), JSON


def _envelope(message: str, kind: str, param: str | None, code: str | None, **more: int) -> bytes:
    error = {"message": message, "type": kind, "param": param, "code": code, **more}
    return encode({"error": error})


def too_long(error: PromptTooLong) -> HttpResponse:
    """400 with what clients look at before they shorten a conversation and try again.

    The code is OpenAI's, the type and the two lengths are llama-server's.
    """
    kind, code = "exceed_context_size_error", "context_length_exceeded"
    lengths = {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.ctx_size}
    body = _envelope(str(error), kind, error.field, code, **lengths)
    return HttpResponse.bytes(body, JSON, 400)


def refused(error: HttpError) -> HttpResponse:
    """The envelope as a response."""
    body, content_type = error_body(error.status, error.message)
    return HttpResponse.bytes(body, content_type, error.status, error.headers)
