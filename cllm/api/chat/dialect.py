"""What a chat template can show, and the format of the calls it writes: found by rendering.

Names of probes stand in no template, so they are found in what it renders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cllm.api.chat.chat_template import ChatTemplate, TemplateError, without_content
from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import CallArguments, CallBegin, CallEnd
from cllm.api.formats import FORMATS, GENERIC, Format
from cllm.api.formats.calls import Calls
from cllm.api.formats.reader import Script

# The marks around thoughts; particular ones come first.
THINK = ("<think>", "</think>")
_THOUGHTS = (
    ("<|channel>thought", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|think|>", "<|end|>"),
    ("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
    THINK,
)

_WORDS = {"word": "probed-word", "parts": ["probed-part", "x"], "count": 7}
_PROPERTIES = {
    "word": {"type": "string", "description": "A word"},
    "parts": {"type": "array", "items": {"type": "string"}, "description": "Parts"},
    "count": {"type": "integer", "description": "A number"},
}
_TOOL = Tool("probed_tool", "A tool", {"type": "object", "properties": _PROPERTIES})
_OTHER = Tool("probed_other", "Another tool", {"type": "object", "properties": {}})
_USER = {"role": "user", "content": "probed-question"}
_RESULT = {"role": "tool", "tool_call_id": "call00001", "name": _TOOL.name,
           "content": "probed-result"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the template of a model can show.

    format: of the calls that the model makes. readable: whether calls that the template writes are
        read; True where it writes none.
    think: the marks around thoughts. thinks: whether the template knows of thoughts.
    tools, calls, results: whether it shows these in messages of their own.
    empty: the content with which a message of calls shows them: "" or None.
    with_content, with_thoughts: whether calls are shown next to content; content next to thoughts.
    parallel: whether several calls of one message are shown.
    system: whether it takes a system message. neighbours: two messages of one role in a row.
    typed: whether content has to be a list of parts.
    described: whether every parameter of a tool needs a description.
    """

    format: Format
    readable: bool
    think: tuple[str, str]
    thinks: bool
    tools: bool
    calls: bool
    results: bool
    empty: str | None
    with_content: bool
    with_thoughts: bool
    parallel: bool
    system: bool
    neighbours: bool
    typed: bool
    described: bool

    def warnings(self) -> list[str]:
        """What an operator should know when the server starts."""
        if self.readable:
            return []
        return [
            "the chat template writes tool calls in a form that is not read; calls of the model "
            "are shown as text; a forced call is written in the format "
            f'"{self.format.name}"; give another template with --chat-template-file'
        ]


def tools_for_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools in the format of templates."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.schema),
            },
        }
        for tool in tools
    ]


def tool_variables(template: ChatTemplate, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The variables by which a template gets the tools: `tools`, or `functions` as text."""
    given: dict[str, Any] = {"tools": list(tools)} if tools else {}
    if "functions" in template.variables:
        functions = [tool["function"] for tool in tools]
        given["functions"] = json.dumps(functions, indent=4, ensure_ascii=False)
    return given


@lru_cache(maxsize=8)
def dialect_of(template: ChatTemplate) -> Dialect:
    """The dialect of a template; some twenty renderings, once per template."""
    probe = _Probe(template)
    empty = next((content for content in ("", None) if probe.calls(content)), "")
    calls = bool(probe.calls(empty))
    written = probe.calls(empty) if calls else ""
    format, readable = _format(template, probe, written)
    think, thinks = _think(template, probe)
    parts = [{"type": "text", "text": _USER["content"]}]
    typed = not probe.shows(_USER["content"], _USER) and probe.shows(
        _USER["content"], {**_USER, "content": parts}
    )
    calling = _calling(empty)
    answered = (_USER, calling, _RESULT) if calls else (
        _USER, {"role": "assistant", "content": "x"}, _RESULT
    )  # fmt: skip
    remark = {**calling, "content": "probed-remark"}
    thought = {"reasoning_content": "probed-thought"}
    return Dialect(
        format=format,
        readable=readable,
        think=think,
        thinks=thinks,
        tools=probe.shows(_TOOL.name, _USER, tools=True),
        calls=calls,
        results=probe.shows("probed-result", *answered, tools=True),
        empty=empty,
        with_content=calls and probe.shows("probed-word", _USER, remark, tools=True),
        with_thoughts=not (
            calls
            and probe.text(_USER, {**calling, **thought}, tools=True)
            and not probe.text(_USER, {**remark, **thought}, tools=True)
        ),
        parallel=not calls or _shows_both(probe, empty),
        system=probe.shows("probed-rule", {"role": "system", "content": "probed-rule"}, _USER),
        neighbours=bool(probe.text(_USER, _USER)) or not probe.text(_USER),
        typed=typed,
        described=bool(probe.text(_USER, tools=True)) and not probe.undescribed(),
    )


class _Probe:
    """Renders conversations; what the template refuses is ""."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._tools = tool_variables(template, tools_for_template((_TOOL, _OTHER)))
        self._none = tool_variables(template, ())
        for variables in (self._tools, self._none):
            variables["datetime"] = "2024-01-01 00:00:00"

    def text(self, *messages: Mapping[str, Any], tools: bool = False, **variables: Any) -> str:
        given = {**(self._tools if tools else self._none), **variables}
        empty = any("content" in each and each["content"] is None for each in messages)
        try:
            adapt = without_content if empty else None
            return self._template.render(messages, given, adapt=adapt)
        except TemplateError:
            return ""

    def shows(self, text: str, *messages: Mapping[str, Any], tools: bool = False) -> bool:
        return text in self.text(*messages, tools=tools)

    def undescribed(self) -> bool:
        """Whether parameters without a description are taken."""
        bare = Tool("probed_tool", "", {"properties": {"word": {"type": "string"}}})
        given = tool_variables(self._template, tools_for_template((bare,)))
        given["datetime"] = ""
        try:
            self._template.render([_USER], given)
        except TemplateError:
            return False
        return True

    def calls(self, content: str | None) -> str:
        """What the template writes for a message with a call, if it shows the call."""
        text = self.text(_USER, _calling(content), tools=True, add_generation_prompt=False)
        answer = text.rpartition(_USER["content"])[2]
        shown = all(word in answer for word in (_TOOL.name, "probed-word", "probed-part"))
        return answer if shown else ""

    def opening(self) -> str:
        """The end of the prompt, from the last question on."""
        return self.text(_USER, tools=True).rpartition(_USER["content"])[2]


def _calling(content: str | None, *more: Tool) -> dict[str, Any]:
    calls = [
        {
            "id": f"call0000{number}",
            "type": "function",
            "function": {
                "name": tool.name,
                "arguments": json.dumps(_WORDS if tool is _TOOL else {}),
            },
        }
        for number, tool in enumerate((_TOOL, *more), 1)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _shows_both(probe: _Probe, empty: str | None) -> bool:
    results = (_RESULT, {**_RESULT, "tool_call_id": "call00002", "name": _OTHER.name})
    text = probe.text(_USER, _calling(empty, _OTHER), *results, tools=True)
    answer = text.rpartition(_USER["content"])[2]
    return _TOOL.name in answer and _OTHER.name in answer


def _format(template: ChatTemplate, probe: _Probe, written: str) -> tuple[Format, bool]:
    """The format, and whether it reads a call that the template wrote.

    Of those that read it, one that writes it in the same way comes first.
    """
    readers = [format for format in FORMATS if written and _reads(format, probe, written)]
    for format in readers:
        if format.layout.write([(_TOOL.name, _WORDS)]) in written:
            return format, True
    if readers:
        return readers[0], True
    return hinted(template.source), not written


def hinted(source: str) -> Format:
    """The format that most of a template's source speaks of."""
    fitting = [
        format for format in FORMATS if format.hints and all(h in source for h in format.hints)
    ]
    return max(fitting, key=lambda format: len(format.hints), default=GENERIC)


def _reads(format: Format, probe: _Probe, written: str) -> bool:
    return any(_read(format, text) == _WORDS for text in (written, _answer(probe, written)))


def _answer(probe: _Probe, written: str) -> str:
    """What a model would write of this: without what stands in the prompt."""
    opening = probe.opening().rstrip()
    for begin, end in _THOUGHTS:
        for mark in (end, begin.rstrip()):
            opening = opening.removesuffix(mark).rstrip()
    return written[len(opening) :] if written.startswith(opening) else written


def _read(format: Format, text: str) -> Any:
    """The arguments of the one call in a text; None: there is no such call."""
    script = Script(lambda reader: format.read(reader, Calls([_TOOL, _OTHER], lambda: "id")))
    events = [*script.push(text), *script.finish()]
    begun = [event.name for event in events if isinstance(event, CallBegin)]
    ended = [event for event in events if isinstance(event, CallEnd)]
    if begun != [_TOOL.name] or len(ended) != 1:
        return None
    try:
        return json.loads("".join(each.text for each in events if isinstance(each, CallArguments)))
    except ValueError:
        return None


def _think(template: ChatTemplate, probe: _Probe) -> tuple[tuple[str, str], bool]:
    """The marks of thoughts, and whether the template knows of them."""
    thought = {"role": "assistant", "content": "x", "reasoning_content": "probed-thought"}
    known = [template.source, probe.text(_USER, thought)]
    known += [probe.text(_USER, enable_thinking=on, thinking=on) for on in (True, False)]
    for think in _THOUGHTS:
        if all(any(mark.strip() in text for text in known) for mark in think):
            return think, True
    return THINK, False
