"""Errors of the engine as an HTTP status and a text for the client."""

from __future__ import annotations

import logging

from cllm.api.rate_limits import retry_fields
from cllm.engine import (
    CompilerUnavailable,
    DeadlineExceeded,
    EngineClosed,
    EngineError,
    InvalidRequest,
    NotEnabled,
    QueueFull,
    TooIntricate,
    Unsupported,
)
from cllm.http import HttpError

log = logging.getLogger("cllm.api")


def describe(error: BaseException, request_id: str) -> HttpError:
    """The status and the text for an error of a generation.

    InvalidRequest and TooIntricate 400, DeadlineExceeded 408, QueueFull 429, NotEnabled and
    Unsupported 501, EngineClosed and CompilerUnavailable 503. Any other error is a fault of the
    server: 500 with the request's id, under which the log has the details.
    """
    if isinstance(error, (InvalidRequest, TooIntricate)):
        return HttpError(400, str(error))
    if isinstance(error, DeadlineExceeded):
        return HttpError(408, str(error))
    if isinstance(error, QueueFull):
        return HttpError(429, str(error), retry_fields(error.retry_after))
    if isinstance(error, (NotEnabled, Unsupported)):
        # Without it, OpenAI's client would retry twice.
        return HttpError(501, str(error), (("X-Should-Retry", "false"),))
    if isinstance(error, (EngineClosed, CompilerUnavailable)):
        return HttpError(503, str(error))
    log.error("request=%s generation failed", request_id, exc_info=error)
    if isinstance(error, EngineError):
        return HttpError(500, f"the generation failed: {error} (id {request_id})")
    return HttpError(500, f"internal error (id {request_id})")
