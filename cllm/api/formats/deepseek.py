"""DeepSeek V3, R1 and V3.1: calls between its own markers.

Source: the chat templates of deepseek-ai/DeepSeek-V3, -R1 (arguments in a fence of JSON after the
word `function`) and -V3.1 (name and arguments alone).
"""

from __future__ import annotations

from collections.abc import Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar, enclosed
from cllm.api.formats.reader import Reader, Steps

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_BETWEEN = "<｜tool▁sep｜>"
_FENCE, _FENCE_END = "\n```json\n", "\n```"


def _fits(source: str) -> bool:
    return _CALLS in source and "```json" not in source


def _fits_fenced(source: str) -> bool:
    return _CALLS in source and "```json" in source


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    while (yield from reader.pass_until((_CALLS,), Text)) is not None:
        before = reader.dropped + _CALLS
        while True:
            before += yield from reader.space()
            if not (yield from reader.starts(_CALL)):
                break
            before = yield from _read_call(reader, calls, before + reader.skip(len(_CALL)))
        if (yield from reader.starts(_CALLS_END)) and not before.strip():
            reader.skip(len(_CALLS_END))
            yield from reader.space()
        elif before:
            yield Text(before)


def _read_call(reader: Reader, calls: Calls, before: str) -> Steps[str]:
    """Read one call; return text that was read and is not a call."""
    head, marker = yield from reader.take_until((_BETWEEN,))
    if marker is None:
        return before + head
    before += head + marker
    name = head.strip()
    if not (yield from reader.starts("{")) and name == "function":
        head, marker = yield from reader.take_until(("```json",))
        before += head + (marker or "")
        name = head.strip()
    before += yield from reader.space()
    if marker is None or name not in calls.tools or not (yield from reader.starts("{")):
        return before
    yield calls.begin(name)
    if not (yield from reader.pass_object(calls.arguments)):
        return ""
    yield calls.end()
    rest, marker = yield from reader.take_until((_CALL_END,))
    if rest.strip() not in ("", "```"):
        yield Text(rest)
    return ""


def _rules(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool, fenced: bool) -> str:
    bodies = []
    for tool in tools:
        arguments = grammar.json(tool.schema)
        named = f"{grammar.text(tool.name)} {grammar.marker(_BETWEEN)} {arguments}"
        if fenced:
            named = (
                f'"function" {grammar.marker(_BETWEEN)} {grammar.text(tool.name + _FENCE)} '
                f"{arguments} {grammar.text(_FENCE_END)}"
            )
        bodies.append(named)
    one = f"{grammar.marker(_CALL)} {grammar.one_of(*bodies)} {grammar.marker(_CALL_END)}"
    one = grammar.rule(one)
    calls = f"{one} (SPACE {one})*" if many else one
    return enclosed(grammar, _CALLS, f"{calls} {grammar.marker(_CALLS_END)}", forced)


def _rules_fenced(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    return _rules(grammar, tools, forced, many, True)


def _rules_plain(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    return _rules(grammar, tools, forced, many, False)


PLAIN = Format("deepseek", _fits, _read, _rules_plain, spell_special=True)
FENCED = Format("deepseek-fenced", _fits_fenced, _read, _rules_fenced, spell_special=True)
