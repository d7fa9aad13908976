"""``/api/chat``: a conversation in, its next turn out."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.fields import named
from cllm.api.chat.prepare import prepare
from cllm.api.constraint_fields import asked_constraint
from cllm.api.envelopes import JSON, encode
from cllm.api.llama_fields import place_of
from cllm.api.ollama.errors import NAMES, refused
from cllm.api.ollama.lines import LINES, Job, Lines, Said, now, whole
from cllm.api.ollama.models import check_model
from cllm.api.ollama.sampling import sampling
from cllm.api.ollama.schemas import CHAT, Asked, ChatRequest, Message
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.http import DeferredResponse, HttpRequest, HttpResponse


class Chat:
    """The endpoint."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/api/chat``. Raises HttpError 400, 404 and 503, InvalidRequest, QueueFull."""
        asked = CHAT.decode(request.body)
        check_model(self._service, asked.model)
        if not asked.messages:
            return loaded(asked, message_of(Said()))
        service = self._service
        with named(NAMES):
            prepared = prepare(service, conversation_of(asked), tenant_of(request))
            params = sampling(
                service,
                asked,
                constraint=prepared.constraint,
                spell_special=prepared.spell_special,
            )
            place = place_of(asked, service.engine.info().context.n_slots)
        engine = service.engine if asked.logprobs or asked.n_probs else None
        job = Job(asked.model, message_of, prepared, engine)
        return self._submission.answer(
            request,
            asked,
            [Wanted(prepared.tokens, params, *place)],
            stream=asked.stream is not False,
            frames=lambda generations: Lines(job, generations),
            respond=lambda generations: whole(job, generations),
            refuse=refused,
            content_type=LINES,
        )


def message_of(said: Said) -> dict[str, Any]:
    """A piece of an answer as a message."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text}
    if said.thinking:
        message["thinking"] = said.thinking
    if said.calls:
        message["tool_calls"] = said.calls
    return {"message": message}


def loaded(asked: Asked, shape: dict[str, Any]) -> HttpResponse:
    """The answer to a request that only loads or unloads the model: it is and stays loaded."""
    done = "unload" if asked.keep_alive in (0, "0", "0s", "0m", "0h") else "load"
    line = {"model": asked.model, "created_at": now(), **shape, "done": True, "done_reason": done}
    return HttpResponse.bytes(encode(line), JSON)


def conversation_of(asked: ChatRequest) -> Conversation:
    """The same in the terms that all APIs share. Raises InvalidRequest."""
    messages = _plain(asked.messages or [])
    return Conversation(
        messages,
        tools=[
            Tool(
                tool.function.name,
                tool.function.description or "",
                tool.function.parameters,
            )
            for tool in asked.tools or ()
        ],
        response=asked_constraint(asked),
        reasoning=asked.think,
        continued=messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1],
        budget=asked.budget,
        shows_thoughts=asked.shows_thoughts,
        cache_salt=asked.cache_salt,
    )


def _plain(given: list[Message]) -> list[dict[str, Any]]:
    """The messages as templates expect them.

    Ollama's calls may have no ids. A result then belongs to the oldest call without a result that
    has its name, or to the oldest at all.
    """
    open_calls: deque[tuple[str, str]] = deque()  # ids and names
    messages: list[dict[str, Any]] = []
    count = 0
    for message in given:
        role = "system" if message.role == "developer" else message.role
        plain: dict[str, Any] = {"role": role, "content": message.content or ""}
        if message.thinking:
            plain["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = plain["tool_calls"] = []
            for call in message.tool_calls:
                id = call.id or f"call_{count:09d}"
                count += 1
                function = call.function
                arguments = function.arguments
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                calls.append(
                    {
                        "id": id,
                        "type": "function",
                        "function": {"name": function.name, "arguments": arguments},
                    }
                )
                open_calls.append((id, function.name))
        if role == "tool":
            name = message.tool_name or message.name
            id, name = _result_of(open_calls, message.tool_call_id, name)
            plain["tool_call_id"] = id
            if name:
                plain["name"] = name
        messages.append(plain)
    return messages


def _result_of(
    open_calls: deque[tuple[str, str]], id: str | None, name: str | None
) -> tuple[str, str | None]:
    """Id and name of the call that a result belongs to."""
    for call in open_calls:
        if id == call[0] or (id is None and name in (None, call[1])):
            open_calls.remove(call)
            return call[0], call[1]
    if id is None and open_calls:
        call = open_calls.popleft()
        return call[0], name or call[1]
    return id or "call_000000000", name
