"""The two envelopes of the native API's JSON: success and failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cllm.api.rate_limits import retry_fields
from cllm.http import HttpError, HttpResponse

JSON = "application/json"

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def success(data: Any) -> HttpResponse:
    """200 with ``{"success": true, "data": …}``."""
    return HttpResponse.bytes(encode({"success": True, "data": data}), JSON)


def failure(
    status: int,
    error: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    **more: Any,
) -> HttpResponse:
    """``{"success": false, "error": …}``; further keys stand next to ``error``."""
    body = encode({"success": False, "error": error, **more})
    return HttpResponse.bytes(body, JSON, status, headers)


def refused(error: HttpError) -> HttpResponse:
    """The failure envelope for an error."""
    if error.status == 429:
        seconds = next(int(value) for name, value in error.headers if name == "Retry-After")
        return too_many_requests(seconds)
    return failure(error.status, error.message, headers=error.headers)


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """The failure envelope as a body and its content type."""
    return encode({"success": False, "error": message}), JSON


def too_many_requests(seconds: int) -> HttpResponse:
    """429: the queue is full, probably for this many seconds."""
    return failure(
        429,
        "Too many concurrent requests",
        headers=retry_fields(seconds),
        message=f"The waiting queue is full; try again in {seconds} seconds.",
        retry_after=seconds,
    )
