"""``/v1/chat/completions``: a conversation in, its next turn out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.fields import named
from cllm.api.chat.prepare import Prepared, counted, prepare
from cllm.api.choices import check_choices
from cllm.api.constraint_fields import asked_constraint
from cllm.api.llama_fields import most_tokens, place_of
from cllm.api.openai.chat_reply import ChatFrames, whole
from cllm.api.openai.errors import refused
from cllm.api.openai.reply import Reply
from cllm.api.openai.schemas import CHAT, ChatRequest, Message
from cllm.api.service import Service
from cllm.api.streamed import made_late
from cllm.api.submission import Submission, Wanted
from cllm.api.tenants import tenant_of
from cllm.engine import InvalidRequest
from cllm.http import DeferredResponse, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation

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
        count = asked.n or 1
        check_choices(self._service, request, 1, count, "n")
        with named(_NAMES):
            prepared = prepare(self._service, conversation_of(asked), tenant_of(request))
        wanted = self._wanted(asked, prepared, count)
        engine = self._service.engine if asked.shows_logprobs else None
        shown = asked.verbose or (asked.verbose is None and self._service.settings.verbose)
        reply = partial(
            Reply.of, self._service, "chatcmpl", count,
            shown=(prepared.text, wanted[0].params) if shown else None,
        )  # fmt: skip

        def respond(generations: Sequence[Generation]) -> HttpResponse:
            make = partial(whole, reply(generations), prepared, engine, asked)
            return make() if asked.prompt_logprobs is None else made_late(make)

        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: ChatFrames(reply(generations), prepared, engine, asked),
            respond=respond,
            refuse=refused,
        )

    def count_tokens(self, request: HttpRequest) -> HttpResponse:
        """POST ``/v1/chat/completions/input_tokens``: the tokens of the prompt; raises as above."""
        asked = CHAT.decode(request.body)
        with named(_NAMES):
            return counted(self._service, conversation_of(asked), tenant_of(request))

    def _wanted(self, asked: ChatRequest, prepared: Prepared, count: int) -> list[Wanted]:
        service = self._service
        slot, fresh = place_of(asked, service.engine.info().context.n_slots)
        most = most_tokens(
            service.settings.sampling,
            asked.n_predict,
            asked.max_completion_tokens,
            asked.max_tokens,
        )
        return [
            Wanted(
                prepared.tokens,
                asked.sampling(
                    service,
                    choice,
                    max_tokens=most,
                    logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
                    prompt_logprobs=None if choice else asked.prompt_logprobs,
                    constraint=prepared.constraint,
                    spell_special=prepared.spell_special,
                ),
                slot,
                fresh,
            )
            for choice in range(count)
        ]


def conversation_of(asked: ChatRequest) -> Conversation:
    """The same in the terms that all APIs share. Raises InvalidRequest."""
    messages = [_plain(message) for message in asked.messages]
    _identify(messages)
    begun = asked.messages[-1]
    if begun.role == "assistant" and isinstance(begun.content, list):  # as llama-server joins them
        messages[-1]["content"] = "\n\n".join(part.said for part in begun.content)
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
        continued=_is_continued(asked, messages[-1]),
        opened=asked.add_generation_prompt is not False,
        budget=asked.budget,
        shows_thoughts=asked.shows_thoughts,
        cache_salt=asked.cache_salt,
    )


def _identify(messages: Sequence[dict[str, Any]]) -> None:
    """Give ids to calls without one, and to results the id of the oldest call that has none."""
    unanswered: list[str] = []
    for number, message in enumerate(messages):
        for index, call in enumerate(message.get("tool_calls", ())):
            call["id"] = call["id"] or f"call_{number}_{index}"
            unanswered.append(call["id"])
        if message["role"] != "tool":
            continue
        id = message.get("tool_call_id") or (unanswered[0] if unanswered else "call_0_0")
        message["tool_call_id"] = id
        if id in unanswered:
            unanswered.remove(id)


def _is_continued(asked: ChatRequest, last: Mapping[str, Any]) -> bool:
    """Whether the last message is the assistant's and stays open."""
    if last["role"] != "assistant":
        if asked.continue_final_message:
            expected = "false where the last message is not the assistant's"
            raise InvalidRequest("continue_final_message", True, expected)
        return False
    continued = "tool_calls" not in last and asked.continue_final_message is not False
    if continued and len(asked.messages) > 1 and asked.messages[-2].role == "assistant":
        one = "one message of the assistant at the end, which is continued"
        raise InvalidRequest("messages", "two messages of the assistant at the end", one)
    return continued


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
