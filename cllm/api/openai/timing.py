"""The field `openai-processing-ms`: how long a response took, or its head where it is a stream."""

from __future__ import annotations

import time

from cllm.api.lanes import Answer, Endpoint
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse

_FIELD = "openai-processing-ms"


def timed(endpoint: Endpoint) -> Endpoint:
    """The endpoint with the field in its responses, errors included."""

    def measuring(request: HttpRequest) -> Answer:
        begun = time.monotonic()

        def field() -> tuple[str, str]:
            return _FIELD, str(round((time.monotonic() - begun) * 1000))

        def add(response: HttpResponse) -> HttpResponse:
            response.headers.append(field())
            return response

        try:
            answer = endpoint(request)
        except HttpError as error:
            raise HttpError(error.status, error.message, (*error.headers, field())) from None
        return answer.then(add) if isinstance(answer, DeferredResponse) else add(answer)

    return measuring
