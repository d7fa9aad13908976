"""Messages in a form that a model's template shows: what it cannot show becomes text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cllm.api.chat.dialect import Dialect
from cllm.api.formats.calls import dump

Shown = dict[str, Any]

_INTRODUCTION = (
    "You may call functions to help with the user's request. They are described here, one JSON "
    "object on a line:\n{tools}\n\nTo call one, write its name and its arguments in exactly this "
    "form and nothing else:\n{example}"
)
_EXAMPLE: tuple[str, Mapping[str, Any]] = ("<name>", {"<argument>": "<value>"})


def adapted(messages: Sequence[Shown], dialect: Dialect, introduction: str = "") -> list[Shown]:
    """The messages for a template of this dialect. introduction: of tools that it cannot show."""
    shown = list(messages)
    if not dialect.parallel:
        shown = _one_call_each(shown)
    shown = [_with_calls(message, dialect) for message in shown]
    if not dialect.results:
        shown = [_result_as_text(message) for message in shown]
    if introduction:
        shown = _introduced(shown, introduction)
    if not dialect.system:
        shown = _without_system(shown)
    if not dialect.neighbours:
        shown = _joined(shown)
    if dialect.typed:
        shown = [_typed(message) for message in shown]
    return shown


def _one_call_each(messages: Sequence[Shown]) -> list[Shown]:
    """Several calls of a message as messages of one call, each with its result after it."""
    shown: list[Shown] = []
    at = 0
    while at < len(messages):
        message, calls = messages[at], messages[at].get("tool_calls") or ()
        at += 1
        if len(calls) < 2:
            shown.append(message)
            continue
        results = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        for number, call in enumerate(calls):
            alone = {**message, "tool_calls": [call]}
            if number:
                alone["content"] = ""
                alone.pop("reasoning_content", None)
                alone.pop("thinking", None)
            own = [each for each in results if each.get("tool_call_id") == call.get("id")]
            shown += [alone, *own]
            results = [each for each in results if each not in own]
        shown += results
    return shown


def _with_calls(message: Shown, dialect: Dialect) -> Shown:
    """A message whose calls are shown: as they are, or as the model would write them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    content = message.get("content") or ""
    if dialect.calls and (dialect.with_content or not content):
        thoughts = message.get("reasoning_content")
        if not dialect.with_thoughts and content and thoughts:
            both = f"{thoughts}\n\n{content}"
            return {**message, "content": "", "reasoning_content": both, "thinking": both}
        return {**message, "content": content or dialect.empty}
    shown = {name: value for name, value in message.items() if name != "tool_calls"}
    written = dialect.format.layout.write([_called(call["function"]) for call in calls])
    written = written.removeprefix(dialect.format.given) if not content else written
    shown["content"] = f"{content}\n{written}" if content else written
    return shown


def _called(function: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)  # the template's shape of calls made it an object's text
    return function["name"], arguments


def _result_as_text(message: Shown) -> Shown:
    if message["role"] != "tool":
        return message
    content = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
    return {"role": "user", "content": content}


def introduction(tools: Sequence[Mapping[str, Any]], dialect: Dialect) -> str:
    """What a system message says of tools that a template of this dialect cannot show."""
    lines = "\n".join(dump(tool["function"]) for tool in tools)
    example = dialect.format.layout.write([_EXAMPLE])
    return _INTRODUCTION.format(tools=lines, example=example)


def _introduced(messages: list[Shown], introduction: str) -> list[Shown]:
    first = messages[0] if messages else {"role": ""}
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{introduction}"}, *messages[1:]]
    return [{"role": "system", "content": introduction}, *messages]


def _without_system(messages: Sequence[Shown]) -> list[Shown]:
    """System messages as the beginning of the user's next message."""
    shown: list[Shown] = []
    rules: list[str] = []
    for message in messages:
        if message["role"] == "system":
            rules.append(str(message.get("content") or ""))
        elif message["role"] == "user" and rules:
            shown.append({**message, "content": "\n\n".join([*rules, message["content"]])})
            rules = []
        else:
            shown.append(message)
    if rules:
        shown.append({"role": "user", "content": "\n\n".join(rules)})
    return shown


def _joined(messages: Sequence[Shown]) -> list[Shown]:
    """Neighbours of the user or the assistant as one message: some templates want turns."""
    shown: list[Shown] = []
    for message in messages:
        last = shown[-1] if shown else None
        plain = last is not None and not (last.get("tool_calls") or message.get("tool_calls"))
        if last is not None and plain and last["role"] == message["role"] != "tool":
            both = [each for each in (last.get("content"), message.get("content")) if each]
            shown[-1] = {**last, "content": "\n\n".join(both)}
        else:
            shown.append(message)
    return shown


def _typed(message: Shown) -> Shown:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
