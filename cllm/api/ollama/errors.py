"""Ollama's envelope of errors: `{"error": "..."}`."""

from __future__ import annotations

import re

from cllm.api.envelopes import JSON, encode
from cllm.http import HttpError, HttpResponse

NAMES = (
    (re.compile(r"^max_tokens\b"), "options.num_predict"),
    (re.compile(r"^repetition_penalty\b"), "options.repeat_penalty"),
    (re.compile(r"^penalty_last_n\b"), "options.repeat_last_n"),
    (
        re.compile(
            r"^(temperature|top_k|top_p|min_p|typical_p|presence_penalty|frequency_penalty|"
            r"mirostat|mirostat_tau|mirostat_eta|seed|stop)\b"
        ),
        r"options.\1",
    ),
    (
        re.compile(r"^(response_format(\.json_schema)?(\.schema)?|json_schema|json_object)\b"),
        "format",
    ),
)
"""Fields of chat completions and of the engine -> Ollama's names; see `chat.fields.named`."""


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """The envelope and its content type."""
    return encode({"error": message}), JSON


def refused(error: HttpError) -> HttpResponse:
    """The envelope as a response."""
    body, content_type = error_body(error.status, error.message)
    return HttpResponse.bytes(body, content_type, error.status, error.headers)
