"""Mistral: after `[TOOL_CALLS]` a list of calls in JSON, or a name, `[ARGS]` and its arguments.

Source: mistral-common, the tokenizers of versions 3 (the list) and 11 (names, one mark per call).
"""

from __future__ import annotations

from collections.abc import Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats import hermes
from cllm.api.formats.calls import Calls, read_json_call, short_id
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar, enclosed, repeated
from cllm.api.formats.reader import Reader, Steps

_CALLS, _ARGUMENTS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_THINK = ("[THINK]", "[/THINK]")


def _fits_old(source: str) -> bool:
    return _CALLS in source and _ARGUMENTS not in source


def _fits_new(source: str) -> bool:
    return _CALLS in source and _ARGUMENTS in source


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    while (yield from reader.pass_until((_CALLS,), Text)) is not None:
        before = reader.dropped + _CALLS
        before += yield from reader.space()
        if (yield from reader.starts("[")):
            yield from _read_list(reader, calls, before)
        elif (yield from reader.starts("{")):
            if not (yield from read_json_call(reader, calls)):
                yield Text(before)
        else:
            yield from _read_named(reader, calls, before)
        yield from reader.space()


def _read_list(reader: Reader, calls: Calls, before: str) -> Steps[None]:
    before += reader.skip(1)
    while True:
        before += yield from reader.space()
        if not (yield from read_json_call(reader, calls)):
            break
        before = yield from reader.space()
        if not (yield from reader.starts(",")):
            break
        before += reader.skip(1)
    if (yield from reader.starts("]")) and not before.strip():
        reader.skip(1)
    elif before:
        yield Text(before)


def _read_named(reader: Reader, calls: Calls, before: str) -> Steps[None]:
    head, marker = yield from reader.take_until((_ARGUMENTS, _ID, "{"))
    name = head.strip()
    if marker == "{":
        reader.text = "{" + reader.text
    elif marker is not None:
        head += marker
        if marker == _ID:
            id, marker = yield from reader.take_until((_ARGUMENTS,))
            head += id + (marker or "")
        head += yield from reader.space()
    if marker is None or name not in calls.tools or not (yield from reader.starts("{")):
        yield Text(before + head)
        return
    yield calls.begin(name)
    if (yield from reader.pass_object(calls.arguments)):
        yield calls.end()


def _rules_old(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    one = grammar.one_of(*(hermes.call(grammar, tool) for tool in tools))
    listed = f'"[" {one} (", " {one})* "]"' if many else f'"[" {one} "]"'
    return enclosed(grammar, _CALLS, listed, forced)


def _rules_new(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    marker = grammar.marker(_ARGUMENTS)
    bodies = [f"{grammar.text(tool.name)} {marker} {grammar.json(tool.schema)}" for tool in tools]
    return repeated(grammar, _CALLS, grammar.one_of(*bodies), forced, many)


OLD = Format("mistral", _fits_old, _read, _rules_old, _THINK, spell_special=True, new_id=short_id)
NEW = Format(
    "mistral-args", _fits_new, _read, _rules_new, _THINK, spell_special=True, new_id=short_id
)
