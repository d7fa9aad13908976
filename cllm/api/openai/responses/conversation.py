"""From a response's input items to a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.constraint_fields import Asked, asked_constraint, form_of
from cllm.api.openai.responses.schemas import (
    AllowedTools,
    Content,
    Item,
    NamedTool,
    Part,
    ResponsesRequest,
)

Choice = tuple[Literal["none", "auto", "required"], frozenset[str] | None]


def conversation(asked: ResponsesRequest) -> Conversation:
    """What is asked, in the shape that every API shares."""
    messages = list(_messages(asked))
    choice, allowed = _choice(asked)
    last = messages[-1]
    return Conversation(
        messages,
        tools=[
            Tool(tool.name, tool.description or "", tool.parameters, bool(tool.strict))
            for tool in asked.tools or ()
        ],
        choice=choice,
        allowed=allowed,
        parallel=asked.parallel_tool_calls is not False,
        response=asked_constraint(asked, _format(asked)),
        reasoning=asked.reasoning.effort if asked.reasoning is not None else None,
        template_kwargs=asked.chat_template_kwargs or {},
        continued=last["role"] == "assistant" and "tool_calls" not in last,
        budget=asked.budget,
        shows_thoughts=asked.shows_thoughts,
    )


def _choice(asked: ResponsesRequest) -> Choice:
    choice = asked.tool_choice
    if isinstance(choice, NamedTool):
        return "required", frozenset({choice.name})
    if isinstance(choice, AllowedTools):
        return choice.mode, frozenset(tool.name for tool in choice.tools)
    return choice or "auto", None


def _format(asked: ResponsesRequest) -> Asked | None:
    format = asked.text.format if asked.text is not None else None
    if format is None:
        return None
    return form_of({"type": format.type, "schema": format.schema}, "text.format")


def _messages(asked: ResponsesRequest) -> Iterator[dict[str, Any]]:
    """Messages in the shape of chat completions: thoughts, text and calls of a turn are one."""
    if asked.instructions:
        yield {"role": "system", "content": asked.instructions}
    if isinstance(asked.input, str):
        yield {"role": "user", "content": asked.input}
        return
    turn: dict[str, Any] = {}  # the assistant's, under way
    for item in asked.input:
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
    if item.type == "function_call_output":
        output = _text(item.output or "")
        return {"role": "tool", "tool_call_id": item.call_id, "content": output}
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _text(item.content or "")}


def _add(turn: dict[str, Any], item: Item) -> None:
    if item.type == "reasoning":
        thoughts = _text(item.content or "") or _text(item.summary or "")
        if thoughts:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thoughts
    elif item.type == "function_call":
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)
    else:
        turn["content"] += _text(item.content or "")


def _text(content: Content | Sequence[Part]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text or part.refusal for part in content)
