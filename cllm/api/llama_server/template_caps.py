"""What a chat template supports, found by rendering conversations with it.

Names: llama.cpp, common/jinja/caps.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cllm.api.chat.chat_template import ChatTemplate, TemplateError

_USER = {"role": "user", "content": "a-question"}


def _call(number: int) -> dict[str, Any]:
    function = {"name": f"call-{number}", "arguments": "{}"}
    return {"id": f"call0000{number}", "type": "function", "function": function}


_PARAMETERS = {"type": "object", "properties": {"x": {"type": "string", "description": "X"}}}
_TOOL = {"name": "a-tool", "description": "A tool", "parameters": _PARAMETERS}
_TOOLS = {"tools": [{"type": "function", "function": _TOOL}]}
# llama.cpp, caps_apply_preserve_reasoning: the names that models use.
_KEEP_REASONING = {
    "preserve_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "drop_thinking": False,
}


def capabilities(template: ChatTemplate) -> dict[str, bool]:
    """`chat_template_caps` of ``/props``."""

    def shows(
        text: str, *messages: Mapping[str, Any], variables: Mapping[str, Any] | None = None
    ) -> bool:
        return text in _rendered(template, messages, variables or {})

    parts = [{"type": "text", "text": "a-question"}]
    one = {"role": "assistant", "content": "", "tool_calls": [_call(1)]}
    two = {"role": "assistant", "content": "", "tool_calls": [_call(1), _call(2)]}
    thought = {"role": "assistant", "content": "answer", "reasoning_content": "a-thought"}
    efforts = {
        _rendered(template, [_USER], {"reasoning_effort": effort, "reasoning_strength": effort})
        for effort in ("low", "high")
    }
    calls = shows("call-1", _USER, one, variables=_TOOLS)
    system = {"role": "system", "content": "a-rule"}
    return {
        "supports_string_content": shows("a-question", _USER),
        "supports_typed_content": not shows("'text'", {**_USER, "content": parts})
        and shows("a-question", {**_USER, "content": parts}),
        "supports_system_role": shows("a-rule", system, _USER),
        "supports_tools": shows("a-tool", _USER, variables=_TOOLS),
        "supports_tool_calls": calls,
        "supports_parallel_tool_calls": calls and shows("call-2", _USER, two, variables=_TOOLS),
        "supports_object_arguments": calls and template.wants_objects,
        "supports_preserve_reasoning": shows(
            "a-thought", _USER, thought, _USER, variables=_KEEP_REASONING
        ),
        "supports_reasoning_effort": len(efforts) > 1,
    }


def _rendered(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    try:
        return template.render(messages, variables)
    except TemplateError:
        return ""
