"""From Anthropic's messages to a conversation: blocks become the fields of templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cllm.api.anthropic.schemas import (
    AnyTool,
    Block,
    CountRequest,
    Message,
    NoTool,
    OneTool,
    Readable,
    ResultBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from cllm.api.anthropic.tools import served
from cllm.api.chat.conversation import Conversation
from cllm.api.constraint_fields import Asked, asked_constraint, form_of
from cllm.api.envelopes import encode
from cllm.engine import InvalidRequest

_BETWEEN = "\n\n"  # between separate texts of a request in one turn of the template


def conversation(asked: CountRequest) -> Conversation:
    """The request as a Conversation. Raises InvalidRequest."""
    messages = list(_messages(asked))
    last = messages[-1] if messages else {}
    choice, tools = asked.tool_choice, served(asked.tools or ())
    forced = isinstance(choice, (AnyTool, OneTool))
    if forced and not tools:
        raise InvalidRequest("tool_choice", "a forced call", "at least one tool in tools")
    return Conversation(
        messages,
        tools=tools,
        choice="none" if isinstance(choice, NoTool) else "required" if forced else "auto",
        allowed=frozenset({choice.name}) if isinstance(choice, OneTool) else None,
        parallel=not getattr(choice, "disable_parallel_tool_use", False),
        response=asked_constraint(asked, *_formats(asked)),
        reasoning=_reasoning(asked),
        continued=last.get("role") == "assistant" and "tool_calls" not in last,
        budget=_budget(asked),
        soft_budget=asked.budget is None,  # budget_tokens is a target there
        shows_thoughts=asked.shows_thoughts,
        cache_salt=asked.cache_salt,
    )


def _formats(asked: CountRequest) -> Iterator[Asked | None]:
    config = asked.output_config
    for format, field in (
        (config.format if config is not None else None, "output_config.format"),
        (asked.output_format, "output_format"),
    ):
        if format is not None:
            yield form_of({"type": "json_schema", "schema": format.schema}, field)


def _reasoning(asked: CountRequest) -> bool | str:
    if asked.thinking is None or asked.thinking.type == "disabled":
        return False  # this API promises it if thinking is not requested
    effort = asked.output_config and asked.output_config.effort
    return effort or True


def _budget(asked: CountRequest) -> int | None:
    thinking = asked.thinking
    if asked.budget is not None or thinking is None or thinking.type != "enabled":
        return asked.budget
    return thinking.budget_tokens


def _messages(asked: CountRequest) -> Iterator[dict[str, Any]]:
    """Messages in OpenAI's shape; adjacent messages of one role are one turn, as in this API."""
    system = _text_of(asked.system or "")
    if system:
        yield {"role": "system", "content": system}
    turn: dict[str, Any] | None = None
    for message in asked.messages:
        for part in _parts(message):
            if turn is not None and _joins(turn, part):
                turn["content"] += _BETWEEN + part["content"]
                continue
            if turn is not None:
                yield turn
            turn = part
    if turn is not None:
        yield turn


def _joins(turn: dict[str, Any], part: dict[str, Any]) -> bool:
    plain = {"role", "content"}
    return turn["role"] == part["role"] and set(turn) == plain and set(part) == plain


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    """The message, after one message per call result: templates need them separate."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    said = [b for b in message.content if not isinstance(b, ToolResultBlock)]
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            content = _text_of(block.content or "")
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
    if said or not message.content:
        yield {"role": message.role, **_said(said)}


def _said(blocks: Sequence[Block]) -> dict[str, Any]:
    said: dict[str, Any] = {"content": _text_of([b for b in blocks if isinstance(b, Readable)])}
    thoughts = [b.thinking for b in blocks if isinstance(b, ThinkingBlock)]
    if thoughts:
        said["reasoning_content"] = _BETWEEN.join(thoughts)
    calls = [_call(b) for b in blocks if isinstance(b, ToolUseBlock)]
    if calls:
        said["tool_calls"] = calls
    return said


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": encode(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _text_of(content: str | Sequence[ResultBlock]) -> str:
    if isinstance(content, str):
        return content
    return _BETWEEN.join(block.text for block in content)
