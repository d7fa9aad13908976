"""Anthropic's tools: those with a schema of the client, those with Anthropic's, and hosted ones.

Tools of Anthropic's servers (search, code) are left out of the prompt. Tools that the client runs
and whose schema only Anthropic's models know (shell, text editor, memory) get their schema here.
Source: the Anthropic documentation, "Tool use".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cllm.api.anthropic.schemas import Tool
from cllm.api.chat import conversation as chat
from cllm.api.chat.fields import Names

_TEXT: Mapping[str, Any] = {"type": "string"}
_LINES: Mapping[str, Any] = {"type": "array", "items": {"type": "integer"}}
_LINE: Mapping[str, Any] = {"type": "integer", "minimum": 0}


def _schema(commands: Sequence[str], **properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {"command": {"type": "string", "enum": commands}, **properties},
        "required": ["command"],
        "additionalProperties": False,
    }


# The beginning of a type -> what the model is told of the tool, and its arguments.
_KNOWN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bash_": (
        "Run a command in a shell that stays open between calls; restart starts a new shell.",
        {
            "type": "object",
            "properties": {"command": _TEXT, "restart": {"type": "boolean"}},
            "additionalProperties": False,
        },
    ),
    "text_editor_": (
        "View, create and edit text files.",
        _schema(
            ("view", "create", "str_replace", "insert"),
            path=_TEXT, file_text=_TEXT, old_str=_TEXT, new_str=_TEXT, insert_line=_LINE,
            insert_text=_TEXT, view_range=_LINES,
        ),
    ),
    "memory_": (
        "Read and change files below /memories, which are kept between conversations.",
        _schema(
            ("view", "create", "str_replace", "insert", "delete", "rename"),
            path=_TEXT, file_text=_TEXT, old_str=_TEXT, new_str=_TEXT, insert_line=_LINE,
            insert_text=_TEXT, view_range=_LINES, old_path=_TEXT, new_path=_TEXT,
        ),
    ),
}  # fmt: skip
_INDEX = re.compile(r"^tools\[(\d+)\]")


def served(given: Sequence[Tool]) -> list[chat.Tool]:
    """The tools that the model is told of."""
    return [_tool(tool) for tool in given if not tool.hosted]


def numbered(given: Sequence[Tool]) -> Names:
    """The places of served tools in the request."""
    places = [number for number, tool in enumerate(given) if not tool.hosted]
    return ((_INDEX, lambda match: f"tools[{places[int(match[1])]}]"),)


def _tool(tool: Tool) -> chat.Tool:
    name = tool.name or ""
    for prefix, (description, schema) in _KNOWN.items():
        if (tool.type or "").startswith(prefix):
            return chat.Tool(name, description, schema)
    return chat.Tool(name, tool.description or "", tool.input_schema, bool(tool.strict))
