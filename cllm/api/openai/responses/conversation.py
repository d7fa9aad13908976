"""From a response's input items to a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from cllm.api.chat.conversation import Conversation
from cllm.api.constraint_fields import Asked, asked_constraint, form_of
from cllm.api.envelopes import encode
from cllm.api.openai.responses.schemas import (
    Content,
    Item,
    NamedTool,
    Part,
    ResponsesRequest,
    ToolChoice,
)
from cllm.api.openai.responses.tools import Toolbox, shown_name

Choice = tuple[Literal["none", "auto", "required"], frozenset[str] | None]


def conversation(asked: ResponsesRequest, items: Sequence[Item], tools: Toolbox) -> Conversation:
    """What is asked, in the shape that every API shares. items: earlier ones and the input's."""
    messages = list(_messages(asked, items))
    choice, allowed = _choice(asked, tools)
    last = messages[-1] if messages else {}
    return Conversation(
        messages,
        tools=tools.tools,
        choice=choice,
        allowed=allowed,
        parallel=asked.parallel_tool_calls is not False,
        response=asked_constraint(asked, _format(asked)),
        reasoning=asked.reasoning.effort if asked.reasoning is not None else None,
        template_kwargs=asked.chat_template_kwargs or {},
        continued=last.get("role") == "assistant" and "tool_calls" not in last,
        budget=asked.budget,
        shows_thoughts=asked.shows_thoughts,
        cache_salt=asked.cache_salt,
    )


def _choice(asked: ResponsesRequest, tools: Toolbox) -> Choice:
    choice = asked.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto", None
    named: Sequence[NamedTool | ToolChoice] = (choice,)
    if choice.type == "allowed_tools":
        named = choice.tools or ()
    names = {tools.find(tool.name or "", tool.namespace) or tool.name or "" for tool in named}
    return choice.mode if choice.type == "allowed_tools" else "required", frozenset(names)


def _format(asked: ResponsesRequest) -> Asked | None:
    format = asked.text.format if asked.text is not None else None
    if format is None:
        return None
    return form_of({"type": format.type, "schema": format.schema}, "text.format")


def _messages(asked: ResponsesRequest, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """Messages in the shape of chat completions: thoughts, text and calls of a turn are one."""
    if asked.instructions:
        yield {"role": "system", "content": asked.instructions}
    turn: dict[str, Any] = {}  # the assistant's, under way
    for item in items:
        if item.omitted:
            continue
        if (item.type == "message" and item.role != "assistant") or item.type.endswith("output"):
            if turn:
                yield turn
            turn = {}
            yield _other(item)
        else:
            turn = turn or {"role": "assistant", "content": ""}
            _add(turn, item)
    if turn:
        yield turn


def _other(item: Item) -> dict[str, Any]:
    if item.type.endswith("_output"):
        output = _text(item.output or "")
        return {"role": "tool", "tool_call_id": item.call_id, "content": output}
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _text(item.content or "")}


def _add(turn: dict[str, Any], item: Item) -> None:
    if item.type == "reasoning":
        thoughts = _text(item.content or "") or _text(item.summary or "")
        if thoughts:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thoughts
    elif item.type in ("function_call", "custom_tool_call"):
        custom = item.type == "custom_tool_call"
        arguments = encode({"input": item.input}).decode() if custom else item.arguments
        name = shown_name(item.name or "", item.namespace)
        function = {"name": name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)
    else:
        turn["content"] += _text(item.content or "")


def _text(content: Content | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text or part.refusal or "" for part in content)
