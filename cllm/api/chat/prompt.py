"""From a conversation to its prompt: the template's input, rendered as text and tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
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
    messages, variables = _shown(service, conversation)
    try:
        prompt = template.prompt(engine, messages, variables, continued=conversation.continued)
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None
    engine.check_prompt_length(len(prompt.tokens))
    return prompt


def prompt_text(service: Service, conversation: Conversation) -> str:
    """The conversation as the template writes it. Raises HttpError 400 and 503."""
    template = service.chat_template
    messages, variables = _shown(service, conversation)
    try:
        return template.render(messages, variables, continued=conversation.continued)
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None


def completed(service: Service, conversation: Conversation) -> Conversation:
    """The conversation with the server's defaults for what it leaves open."""
    settings, given = service.settings, conversation
    budget = settings.reasoning_budget if given.budget is None else given.budget
    reasoning = settings.reasoning if given.reasoning is None else given.reasoning
    return replace(
        given,
        reasoning=False if budget == 0 else reasoning,
        budget=budget,
        shows_thoughts=(
            settings.shows_thoughts if given.shows_thoughts is None else given.shows_thoughts
        ),
        template_kwargs={**settings.template_kwargs, **given.template_kwargs},
    )


def _shown(
    service: Service, conversation: Conversation
) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
    """What a template is given: messages and variables."""
    conversation, source = completed(service, conversation), service.chat_template.source
    messages: Sequence[Mapping[str, Any]] = conversation.messages
    tools = described(conversation.tools) if conversation.choice != "none" else []
    variables = {**_usual(), **_reasoning(conversation.reasoning), **conversation.template_kwargs}
    if not (conversation.opened or conversation.continued):
        variables["add_generation_prompt"] = False
    if "functions" in source:  # of Firefunction
        variables["functions"] = json.dumps(tools, indent=2) if tools else ""
    if "tools" not in source:
        messages = generic.described(messages, tools)
    elif tools:
        variables["tools"] = tools
    if detect(source).new_id is short_id:
        messages = [_with_short_ids(message) for message in messages]
    return messages, variables


def _usual() -> dict[str, Any]:
    """What llama-server tells templates, and transformers does not.

    Some templates think only if `enable_thinking` is true, and name a fixed day without a date.
    """
    now = datetime.now()
    return {
        "enable_thinking": True,
        "date_string": now.strftime("%d %b %Y"),
        "datetime": now.strftime("%b %d %Y"),
    }


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
