"""From a conversation to its prompt: the template's input, rendered as text and tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cllm.api.chat.chat_template import Rendered, TemplateError
from cllm.api.chat.conversation import Conversation
from cllm.api.chat.tools import described
from cllm.api.formats import detect, generic
from cllm.api.formats.calls import short_id
from cllm.api.service import Service
from cllm.http import HttpError

# Efforts that OpenAI names and templates do not know -> the nearest that they know.
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}


def prompt_of(service: Service, conversation: Conversation) -> Rendered:
    """The prompt, which the engine accepts.

    Raises HttpError 400 and 503, InvalidRequest, PromptTooLong, Unsupported, EngineClosed.
    """
    engine, template = service.engine, service.chat_template
    messages, variables = _shown(template.source, conversation)
    try:
        prompt = template.prompt(engine, messages, variables, continued=conversation.continued)
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None
    engine.check_prompt_length(len(prompt.tokens))
    return prompt


def prompt_text(service: Service, conversation: Conversation, **variables: Any) -> str:
    """The conversation as the template writes it; variables: more for the template.

    Raises HttpError 400 and 503.
    """
    template = service.chat_template
    messages, given = _shown(template.source, conversation)
    try:
        return template.render(messages, {**given, **variables}, continued=conversation.continued)
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None


def _shown(
    source: str, conversation: Conversation
) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
    """What a template is given: messages and variables."""
    messages: Sequence[Mapping[str, Any]] = conversation.messages
    tools = described(conversation.tools) if conversation.choice != "none" else []
    variables = {**_reasoning(conversation.reasoning), **conversation.template_kwargs}
    if "tools" not in source:
        messages = generic.described(messages, tools)
    elif tools:
        variables["tools"] = tools
    if detect(source).new_id is short_id:
        messages = [_with_short_ids(message) for message in messages]
    return messages, variables


def _reasoning(wanted: bool | str | None) -> dict[str, Any]:
    """The variables that make templates ask for thoughts."""
    if wanted is None:
        return {}
    on = wanted not in (False, "none")
    variables: dict[str, Any] = {"enable_thinking": on, "thinking": on}
    if isinstance(wanted, str):
        variables["reasoning_effort"] = _EFFORTS.get(wanted, wanted)
    return variables


def _with_short_ids(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with ids as Mistral's templates require them."""
    shown = dict(message)
    if shown.get("tool_calls"):
        shown["tool_calls"] = [{**call, "id": _short(call["id"])} for call in shown["tool_calls"]]
    if shown.get("tool_call_id"):
        shown["tool_call_id"] = _short(shown["tool_call_id"])
    return shown


def _short(id: str) -> str:
    if len(id) == 9 and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:9]
