"""``/api/generate``: a prompt in, its answer or continuation out."""

from __future__ import annotations

from functools import partial
from typing import Any

from cllm.api.chat.conversation import Conversation
from cllm.api.chat.fields import named
from cllm.api.chat.prepare import Prepared, prepare, read_text
from cllm.api.constraint_fields import asked_constraint, checked
from cllm.api.filling import filling
from cllm.api.formats.reader import Script
from cllm.api.llama_fields import place_of
from cllm.api.ollama.chat import loaded
from cllm.api.ollama.errors import NAMES, refused
from cllm.api.ollama.lines import LINES, Job, Lines, Said, whole
from cllm.api.ollama.models import check_model
from cllm.api.ollama.sampling import sampling
from cllm.api.ollama.schemas import GENERATE, GenerateRequest
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.http import DeferredResponse, HttpRequest, HttpResponse


class Generate:
    """The endpoint."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/api/generate``; raises as ``/api/chat``."""
        asked = GENERATE.decode(request.body)
        check_model(self._service, asked.model)
        if not asked.prompt and not asked.suffix:
            return loaded(asked, _response(Said()))
        talks = not asked.raw and not asked.suffix
        with named(NAMES):
            prepared = (self._conversing if talks else self._plain)(asked, tenant_of(request))
            tokens = [*(asked.context or ()), *prepared.tokens]
            self._service.engine.check_prompt(tokens)
            params = sampling(
                self._service,
                asked,
                constraint=prepared.constraint,
                spell_special=prepared.spell_special,
                record_tokens=talks,
            )
            place = place_of(asked, self._service.engine.info().context.n_slots)
        engine = self._service.engine if asked.logprobs or asked.n_probs else None
        job = Job(asked.model, _response, prepared, engine, tokens if talks else None)
        return self._submission.answer(
            request,
            asked,
            [Wanted(tokens, params, *place)],
            stream=asked.stream is not False,
            frames=lambda generations: Lines(job, generations),
            respond=lambda generations: whole(job, generations),
            refuse=refused,
            content_type=LINES,
        )

    def _conversing(self, asked: GenerateRequest, tenant: str) -> Prepared:
        """The prompt as a user's message."""
        messages: list[dict[str, Any]] = []
        if asked.system:
            messages.append({"role": "system", "content": asked.system})
        messages.append({"role": "user", "content": asked.prompt or ""})
        return prepare(
            self._service,
            Conversation(
                messages,
                response=asked_constraint(asked),
                reasoning=asked.think,
                budget=asked.budget,
                shows_thoughts=asked.shows_thoughts,
                cache_salt=asked.cache_salt,
            ),
            tenant,
        )

    def _plain(self, asked: GenerateRequest, tenant: str) -> Prepared:
        """The prompt as it is, special tokens included, and where there is one its suffix."""
        engine = self._service.engine
        wanted = checked(engine, asked_constraint(asked), tenant)
        tokens = engine.tokenize(asked.prompt or "", parse_special=bool(asked.raw))
        if asked.suffix:
            tokens = filling(engine, tokens, asked.suffix)
        return Prepared(tokens, asked.prompt or "", wanted, False, partial(Script, read_text))


def _response(said: Said) -> dict[str, Any]:
    shown: dict[str, Any] = {"response": said.text}
    if said.thinking:
        shown["thinking"] = said.thinking
    return shown
