"""The two envelopes every JSON answer wears, and engine errors in HTTP's words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from cllm.engine import (
    DeadlineExceeded,
    EngineClosed,
    EngineError,
    InvalidRequest,
    QueueFull,
)
from cllm.http import HttpRequest, HttpResponse

log = logging.getLogger("cllm.api")

JSON = "application/json"

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def success(data: Any) -> HttpResponse:
    """200 with ``{"success": true, "data": …}``."""
    return HttpResponse.bytes(encode({"success": True, "data": data}), JSON)


def failure(
    status: int,
    error: str,
    *,
    headers: tuple[tuple[str, str], ...] = (),
    **more: Any,
) -> HttpResponse:
    """``{"success": false, "error": …}``; further keys stand beside ``error``."""
    response = HttpResponse.bytes(
        encode({"success": False, "error": error, **more}), JSON, status=status
    )
    response.headers.extend(headers)
    return response


def error_body(status: int, message: str, request: HttpRequest | None) -> tuple[bytes, str]:
    """The failure envelope for errors that the HTTP room finds by itself (404, 413, …)."""
    return encode({"success": False, "error": message}), JSON


def too_many_requests(retry_after: int) -> HttpResponse:
    """429: the engine's queue is full."""
    return failure(
        429,
        "Too many concurrent requests",
        headers=(("Retry-After", str(retry_after)),),
        message=f"The waiting queue is full; try again in {retry_after} seconds.",
        retry_after=retry_after,
    )
