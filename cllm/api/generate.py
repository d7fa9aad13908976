"""``/generate`` and ``/generate_stream``: a prompt in, its continuation whole or as it is made.

No worker waits for a token: the handler submits and returns, and the engine's last update resolves
the response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cllm.api.errors import describe
from cllm.api.metrics import Metrics
from cllm.api.responses import failure, success
from cllm.api.schemas import GENERATE, GenerateRequest
from cllm.api.service import Service
from cllm.api.stream import GenerationStream
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation


class Generating:
    """The two endpoints; they share validation and differ in how the text leaves."""

    __slots__ = ("_metrics", "_service")

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    def generate(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """The whole text in one answer, or events with ``"stream": true``.

        Raises HttpError 400 and 503, InvalidRequest, QueueFull.
        """
        asked = GENERATE.decode(request.body)
        return self._streamed(request, asked) if asked.stream else self._whole(request, asked)

    def generate_stream(self, request: HttpRequest) -> HttpResponse:
        """Events, whatever ``stream`` says; raises as `generate`."""
        return self._streamed(request, GENERATE.decode(request.body))

    def _whole(self, request: HttpRequest, asked: GenerateRequest) -> DeferredResponse:
        answer = _Answer(request.id, self._metrics)
        generation = self._service.engine.submit(
            asked.prompt,
            asked.sampling(),
            deadline=self._service.settings.request_timeout,
            on_update=answer.on_update,
        )
        answer.bind(generation)
        return answer.deferred

    def _streamed(self, request: HttpRequest, asked: GenerateRequest) -> HttpResponse:
        stream = GenerationStream(request.id, self._metrics.finished)
        stream.bind(
            self._service.engine.submit(
                asked.prompt,
                asked.sampling(),
                deadline=self._service.settings.request_timeout,
                on_update=stream.on_update,
            )
        )
        return HttpResponse.sse(stream)


class _Answer:
    """Resolves a deferred response when its generation is done."""

    __slots__ = ("_generation", "_metrics", "_request_id", "deferred")

    def __init__(self, request_id: str, metrics: Metrics) -> None:
        self.deferred = DeferredResponse()
        self._generation: Generation | None = None
        self._metrics = metrics
        self._request_id = request_id

    def bind(self, generation: Generation) -> None:
        self._generation = generation
        self.deferred.on_cancel(lambda reason: generation.cancel())
        # It may have ended before there was a generation to look at.
        self.on_update()

    def on_update(self) -> None:
        """On the engine thread after a step."""
        generation = self._generation
        if generation is None or not generation.done or self.deferred.cancelled:
            return
        try:
            response = self._response(generation)
        except Exception as error:
            # Whatever it is, the client must not wait for ever.
            fault = describe(error, self._request_id)
            response = failure(fault.status, fault.message)
        if self.deferred.resolve(response):
            self._metrics.finished(generation)

    def _response(self, generation: Generation) -> HttpResponse:
        if generation.error is not None:
            error = describe(generation.error, self._request_id)
            return failure(error.status, error.message, headers=error.headers)
        if generation.finish_reason == "cancelled":
            return failure(503, "the generation was cancelled")
        usage, seconds = generation.usage, generation.timings.total_s
        return success(
            {
                "id": generation.id,
                "text": "".join(generation.take()),
                "response_time": seconds,
                "tokens_per_second": usage.completion_tokens / seconds if seconds > 0 else 0.0,
                "finish_reason": generation.finish_reason,
                "usage": usage,
            }
        )
