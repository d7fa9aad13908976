"""``/v1/chat/completions``: a conversation in, its next turn out."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.fields import named
from cllm.api.chat.prepare import Prepared, prepare
from cllm.api.constraint_fields import asked_constraint
from cllm.api.openai.chat_reply import ChatFrames, whole
from cllm.api.openai.errors import refused
from cllm.api.openai.reply import Reply
from cllm.api.openai.schemas import CHAT, ChatRequest, Message
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    pass

_NAMES = ((re.compile(r"^prompt\b"), "messages"),)


class ChatCompletions:
    """The endpoint."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/chat/completions``.

        Raises HttpError 400 and 503, InvalidRequest, QueueFull.
        """
        asked = CHAT.decode(request.body)
        with named(_NAMES):
            prepared = prepare(self._service, conversation_of(asked), tenant_of(request))
        count = asked.n or 1
        wanted = _wanted(asked, prepared, count)
        engine = self._service.engine if asked.logprobs else None
        usage = asked.streams_usage
        reply = partial(Reply.of, self._service, "chatcmpl", count)
        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: ChatFrames(reply(generations), prepared, engine, usage),
            respond=lambda generations: whole(reply(generations), prepared, engine),
            refuse=refused,
        )


def _wanted(asked: ChatRequest, prepared: Prepared, count: int) -> list[Wanted]:
    most = asked.max_completion_tokens or asked.max_tokens
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return [
        Wanted(
            prepared.tokens,
            asked.sampling(
                most,
                choice,
                logprobs=logprobs,
                constraint=prepared.constraint,
                spell_special=prepared.spell_special,
            ),
        )
        for choice in range(count)
    ]


def conversation_of(asked: ChatRequest) -> Conversation:
    """The same in the terms that all APIs share. Raises InvalidRequest."""
    messages = [_plain(message) for message in asked.messages]
    choice, allowed = _choice(asked)
    return Conversation(
        messages,
        tools=[
            Tool(
                tool.function.name,
                tool.function.description or "",
                tool.function.parameters,
                bool(tool.function.strict),
            )
            for tool in asked.tools or ()
        ],
        choice=choice,
        allowed=allowed,
        parallel=asked.parallel_tool_calls is not False and not _is_named(asked),
        response=asked_constraint(asked),
        reasoning=asked.reasoning_effort,
        template_kwargs=asked.chat_template_kwargs or {},
        continued=messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1],
    )


def _is_named(asked: ChatRequest) -> bool:
    return getattr(asked.tool_choice, "function", None) is not None


def _choice(
    asked: ChatRequest,
) -> tuple[Literal["none", "auto", "required"], frozenset[str] | None]:
    """Whether tools may or must be called, and which."""
    choice = asked.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto", None
    if choice.allowed_tools is not None:
        names = frozenset(tool.function.name for tool in choice.allowed_tools.tools)
        return choice.allowed_tools.mode, names
    assert choice.function is not None
    return "required", frozenset((choice.function.name,))


def _plain(message: Message) -> dict[str, Any]:
    """The message as templates expect it: content as one text, no empty fields."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    content = message.content
    if isinstance(content, list):
        content = "".join(part.said for part in content)
    plain["content"] = content or ""
    if message.role == "developer":
        plain["role"] = "system"
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
    for call, given in zip(plain.get("tool_calls", ()), message.tool_calls or (), strict=False):
        call["type"] = given.type
    return plain
