"""``/v1/messages`` and ``/v1/messages/count_tokens``: a conversation in, its next message out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cllm.api.anthropic.blocks import MessageFrames, Reply, content_of
from cllm.api.anthropic.conversation import conversation
from cllm.api.anthropic.errors import refused
from cllm.api.anthropic.schemas import COUNT, MESSAGES, MessagesRequest
from cllm.api.anthropic.tools import numbered
from cllm.api.chat.events import CallBegin
from cllm.api.chat.fields import named
from cllm.api.chat.prepare import Prepared, prepare
from cllm.api.envelopes import JSON, encode
from cllm.api.llama_fields import most_tokens, place_of
from cllm.api.sampling import given_sampling
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.engine import PromptTooLong, SamplingParams
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation

_NAMES = (
    (re.compile(r"^prompt\b"), "messages"),
    (re.compile(r"^stop\b"), "stop_sequences"),
    (re.compile(r"^(tools\[\d+\])\.function\.parameters"), r"\1.input_schema"),
    (re.compile(r"^(tools\[\d+\])\.function"), r"\1"),
)


class Messages:
    """The endpoints."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def create(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/messages``. Raises HttpError 400 and 503, InvalidRequest, QueueFull."""
        asked = MESSAGES.decode(request.body)
        with named(_NAMES), named(numbered(asked.tools or ())):
            prepared = prepare(self._service, conversation(asked), tenant_of(request))
            service = self._service
            params = _params(asked, prepared, service)
            place = place_of(asked, service.engine.info().context.n_slots)
            wanted = [Wanted(prepared.tokens, params, *place)]

        def reply(generations: Sequence[Generation]) -> Reply:
            return Reply(self._service.model_id, asked.max_tokens, generations[0])

        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: MessageFrames(reply(generations), prepared),
            respond=lambda generations: _whole(reply(generations), prepared),
            refuse=refused,
        )

    def count_tokens(self, request: HttpRequest) -> HttpResponse:
        """POST ``/v1/messages/count_tokens``. Raises HttpError 400 and 503, InvalidRequest."""
        asked = COUNT.decode(request.body)
        with named(_NAMES), named(numbered(asked.tools or ())):
            try:
                prepared = prepare(self._service, conversation(asked), tenant_of(request))
                count = len(prepared.tokens)
            except PromptTooLong as error:  # which is just what this is asked for
                count = error.prompt_tokens
        return HttpResponse.bytes(encode({"input_tokens": count}), JSON)


def _params(asked: MessagesRequest, prepared: Prepared, service: Service) -> SamplingParams:
    most = most_tokens(service.settings.sampling, asked.n_predict, asked.max_tokens)
    return SamplingParams(
        **{**given_sampling(asked, service), "max_tokens": most},
        stop=tuple(asked.stop_sequences or ()),
        constraint=prepared.constraint,
        spell_special=prepared.spell_special,
    )


def _whole(reply: Reply, prepared: Prepared) -> HttpResponse:
    parser = prepared.parser()
    events = [
        *parser.push("".join(reply.generation.take())),
        *parser.finish(reply.generation.finish_reason == "length"),
    ]
    called = any(isinstance(event, CallBegin) for event in events)
    message = reply.message(content_of(events), reply.stop(called))
    return HttpResponse.bytes(encode(message), JSON)
