"""From a conversation to its prompt: the template's input, rendered as text and tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, TypedDict

from cllm.api.chat.adaptation import adapted, introduction
from cllm.api.chat.chat_template import Adapt, ChatTemplate, End, Rendered, TemplateError
from cllm.api.chat.conversation import Conversation
from cllm.api.chat.dialect import dialect_of, tool_variables, tools_for_template
from cllm.api.formats.calls import short_id
from cllm.api.service import Service
from cllm.http import HttpError

# Efforts that OpenAI names and templates do not know -> the nearest that they know.
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}


class _Way(TypedDict):
    """Keywords of ChatTemplate's methods."""

    continued: bool
    adapt: Adapt
    end: End | None


def prompt_of(service: Service, conversation: Conversation) -> Rendered:
    """The prompt of a completed conversation, which the engine accepts.

    Raises HttpError 400 and 503, InvalidRequest, PromptTooLong, Unsupported, EngineClosed.
    """
    engine, template = service.engine, service.template_for(bool(conversation.tools))
    messages, variables, way = _shown(template, conversation)
    try:
        prompt = template.prompt(engine, messages, variables, **way, owner=conversation.owner)
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None
    engine.check_prompt_length(len(prompt.tokens))
    return prompt


def prompt_text(service: Service, conversation: Conversation, **variables: Any) -> str:
    """The conversation as the template writes it; variables: more for the template.

    Raises HttpError 400 and 503.
    """
    template = service.template_for(bool(conversation.tools))
    try:
        return rendered(template, completed(service, conversation), **variables)
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


def rendered(template: ChatTemplate, conversation: Conversation, **variables: Any) -> str:
    """The same with this template. Raises TemplateError."""
    messages, given, way = _shown(template, conversation)
    return template.render(messages, {**given, **variables}, **way)


def _shown(
    template: ChatTemplate, conversation: Conversation
) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any], _Way]:
    """What a template is given: messages, variables, and what is done to its input and output."""
    dialect = dialect_of(template)
    messages: Sequence[Mapping[str, Any]] = conversation.messages
    tools = tools_for_template(conversation.tools) if conversation.choice != "none" else []
    if dialect.described:
        tools = [_described(tool) for tool in tools]
    variables = _variables(template, conversation.reasoning)
    variables |= tool_variables(template, tools if dialect.tools else [])
    variables |= conversation.template_kwargs
    if not (conversation.opened or conversation.continued):
        variables["add_generation_prompt"] = False
    if dialect.format.new_id is short_id:
        messages = [_with_short_ids(message) for message in messages]
    frame, introduced = template.framed, ""
    if tools and not dialect.tools:
        make = partial(_introduction, template, tools)
        introduced = conversation.once("introduction", make)

    def adapt(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return adapted(shown, dialect, introduced)

    thoughts, begin = conversation.open_thoughts, dialect.think[0]
    if not thoughts or dialect.format.channels:
        continued = conversation.continued
        return messages, variables, {"continued": continued, "adapt": adapt, "end": None}

    def reopen(prompt: str) -> str:
        """The start of the turn with the thoughts, as the model would have written them."""
        opened = prompt.rstrip().endswith(begin.rstrip())
        return (prompt if opened else f"{prompt}{begin}\n") + str(frame(thoughts))

    return messages[:-1], variables, {"continued": False, "adapt": adapt, "end": reopen}


def _introduction(template: ChatTemplate, tools: Sequence[Mapping[str, Any]]) -> str:
    """What a system message says of the tools; their texts become no control tokens."""
    return introduction(template.framed(tools), dialect_of(template))


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool with the keywords that some templates expect of every parameter."""
    function = tool["function"]
    parameters = _filled(function["parameters"])
    return {**tool, "function": {**function, "parameters": parameters}}


def _filled(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    filled = {"description": "", "type": "string", **schema}
    if filled["type"] == "array":
        filled["items"] = _filled(filled.get("items", {}))
    elif "properties" in filled:
        properties = filled["properties"]
        filled["properties"] = {name: _filled(each) for name, each in properties.items()}
    if filled["type"] == "object":
        filled.setdefault("additionalProperties", {"type": "string"})
    return filled


def _variables(template: ChatTemplate, reasoning: bool | str | None) -> dict[str, Any]:
    """The variables that templates expect from a server."""
    now = datetime.now()
    variables: dict[str, Any] = {"date_string": now.strftime("%d %b %Y")}
    # Reasoning models think unless they are told not to; templates differ if it is undefined.
    variables |= {"enable_thinking": True, **_reasoning(reasoning)}
    if "datetime" in template.variables:
        variables["datetime"] = now.strftime("%b %d %Y")
    return variables


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
