"""``/generate`` and ``/generate_stream``: a prompt in, its continuation out, whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cllm.api.constraint_fields import asked_constraint, checked
from cllm.api.envelopes import refused, success
from cllm.api.llama_fields import place_of
from cllm.api.native.frames import NativeFrames
from cllm.api.native.schemas import GENERATE, GenerateRequest
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation


class Generating:
    """The two endpoints; they share validation and differ in how they return the text."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def generate(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """The whole text in one answer, or events with ``"stream": true``.

        Raises HttpError 400 and 503, InvalidRequest, QueueFull.
        """
        asked = GENERATE.decode(request.body)
        return self._submission.answer(
            request,
            asked,
            self._wanted(request, asked),
            stream=asked.stream,
            frames=NativeFrames,
            respond=_respond,
            refuse=refused,
        )

    def generate_stream(self, request: HttpRequest) -> HttpResponse:
        """Events, whatever ``stream`` says; raises as `generate`."""
        asked = GENERATE.decode(request.body)
        wanted = self._wanted(request, asked)
        return self._submission.streamed(request, asked, wanted, NativeFrames)

    def _wanted(self, request: HttpRequest, asked: GenerateRequest) -> list[Wanted]:
        service = self._service
        place = place_of(asked, service.engine.info().context.n_slots)
        constraint = checked(service.engine, asked_constraint(asked), tenant_of(request))
        return [Wanted(asked.prompt, asked.sampling(service, constraint), *place)]


def _respond(generations: Sequence[Generation]) -> HttpResponse:
    (generation,) = generations
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
