"""Any other model: a system message describes the tools, and it answers in JSON like Hermes.

An answer that begins as a call without markers also counts as a call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from cllm.api.formats import hermes
from cllm.api.formats.calls import Calls, dump, read_json_call
from cllm.api.formats.format import Format
from cllm.api.formats.reader import Reader, Steps

_INTRODUCTION = (
    "You may call functions to help with the user's request. They are described here, one JSON "
    "object on a line:\n{tools}\n\nTo call one, write its name and arguments as JSON between these "
    'two marks and nothing else:\n<tool_call>\n{{"name": <name>, "arguments": <arguments>}}\n'
    "</tool_call>"
)


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    space = yield from reader.space()
    if (yield from read_json_call(reader, calls)):
        yield from reader.space()
    else:
        reader.text = space + reader.text
    yield from hermes.read(reader, calls)


FORMAT = Format("generic", lambda source: True, _read, hermes.rules)


def described(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages for a template without tools: tools, calls and results become text."""
    shown = [_as_text(message) for message in messages]
    if tools:
        lines = "\n".join(dump(tool["function"]) for tool in tools)
        introduction = _INTRODUCTION.format(tools=lines)
        if shown[0]["role"] == "system":
            shown[0]["content"] = f"{shown[0]['content']}\n\n{introduction}"
        else:
            shown.insert(0, {"role": "system", "content": introduction})
    return shown


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(message)
    if shown["role"] == "tool":
        content = f"<tool_response>\n{shown.get('content') or ''}\n</tool_response>"
        return {"role": "user", "content": content}
    calls = shown.pop("tool_calls", None)
    if calls:
        parts = [shown["content"]] if shown.get("content") else []
        parts += [f"{hermes.BEGIN}\n{_call(call['function'])}\n{hermes.END}" for call in calls]
        shown["content"] = "\n".join(parts)
    return shown


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    if isinstance(arguments, str):
        with suppress(ValueError):  # arguments that are not JSON are shown as text
            arguments = json.loads(arguments or "{}")
    return dump({"name": function["name"], "arguments": arguments})
