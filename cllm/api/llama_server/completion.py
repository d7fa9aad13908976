"""``/completion``: prompts in, their continuations out, whole or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cllm.api.choices import check_choices
from cllm.api.envelopes import JSON, encode
from cllm.api.llama_fields import place_of
from cllm.api.llama_server.errors import refused
from cllm.api.llama_server.frames import CompletionFrames
from cllm.api.llama_server.prompts import prompts, spelled
from cllm.api.llama_server.results import Job, whole
from cllm.api.llama_server.sampling import sampling
from cllm.api.llama_server.schemas import COMPLETION, CompletionRequest
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation


class Completion:
    """The endpoint, and what ``/infill`` shares with it."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/completion``. Raises HttpError 400 and 503, InvalidRequest, QueueFull."""
        asked = COMPLETION.decode(request.body)
        return self.answer(request, asked, prompts(self._service.engine, asked.prompt))

    def answer(
        self, request: HttpRequest, asked: CompletionRequest, found: Sequence[list[int]]
    ) -> HttpResponse | DeferredResponse:
        """Continue each prompt the requested number of times; raises as `endpoint`."""
        engine, count = self._service.engine, asked.n_cmpl or asked.n or 1
        name = "n_cmpl" if asked.n_cmpl else "n"
        check_choices(self._service, request, len(found), count, name)
        slot, fresh = place_of(asked, engine.info().context.n_slots)
        defaults, tenant = self._service.settings.sampling, tenant_of(request)
        wanted = [
            Wanted(tokens, sampling(engine, asked, defaults, choice, tenant), slot, fresh)
            for tokens in found
            for choice in range(count)
        ]
        texts = [spelled(engine, tokens) for tokens in found]
        job = Job(
            engine,
            asked,
            [text for text in texts for _ in range(count)],
            [each.params for each in wanted],
            self._service.model_id,
        )

        def respond(generations: Sequence[Generation]) -> HttpResponse:
            answers = [whole(job, index, each) for index, each in enumerate(generations)]
            return HttpResponse.bytes(encode(answers if len(answers) > 1 else answers[0]), JSON)

        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: CompletionFrames(job, generations),
            respond=respond,
            refuse=refused,
        )
