"""Qwen3-Coder: a call as elements, its arguments as text between `<parameter=name>` and its end.

Source: the chat template of Qwen/Qwen3-Coder. Text arguments are written unchanged, all others
as JSON. Calls in Hermes' JSON are accepted too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Event, Text
from cllm.api.formats import hermes
from cllm.api.formats.calls import Calls, dump, load, read_json_call
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar, repeated
from cllm.api.formats.reader import Reader, Steps

_BEGIN, _END = hermes.BEGIN, hermes.END
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
# What a template's Python writes for JSON's names.
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_CHOICE = {"type", "enum", "title", "description", "default"}
# With these keywords a text follows its schema only if it is written as JSON or chosen from a list.
_BINDING = ("enum", "const", "pattern", "format", "minLength", "maxLength")


def _fits(source: str) -> bool:
    return _BEGIN in source and _FUNCTION in source and _PARAMETER in source


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    while (marker := (yield from reader.pass_until((_BEGIN, _FUNCTION), Text))) is not None:
        before, found = reader.dropped + marker, marker == _FUNCTION
        if marker == _BEGIN:
            before += yield from reader.space()
            if (yield from reader.starts(_FUNCTION)):
                found = True
                before += reader.skip(len(_FUNCTION))
            elif (yield from read_json_call(reader, calls)):
                yield from hermes.close(reader)
                continue
        if found:
            name = yield from _name(reader)
            if name is not None and name in calls.tools:
                yield from _read_arguments(reader, calls, calls.tools[name])
                yield from hermes.close(reader)
                continue
            before += "" if name is None else f"{name}>"
        yield Text(before)


def _name(reader: Reader) -> Steps[str | None]:
    """The text up to `>`, which is skipped; None, and nothing read, if it is not a name."""
    while ">" not in reader.text and "\n" not in reader.text and not reader.ended:
        yield None
    name, found, _ = reader.text.partition(">")
    if not found or "\n" in name:
        return None
    reader.skip(len(name) + 1)
    return name


def _read_arguments(reader: Reader, calls: Calls, tool: Tool) -> Steps[None]:
    yield calls.begin(tool.name)
    properties = tool.schema.get("properties", {})
    before = "{"
    while True:
        between, marker = yield from reader.take_until((_PARAMETER, _FUNCTION_END))
        if between.strip():
            yield Text(between)
        if marker != _PARAMETER:
            break
        name, end = yield from reader.take_until((">",))
        if end is None:
            return
        yield calls.arguments(f"{before}{dump(name)}: ")
        before = ", "
        if (yield from reader.starts("\n")):
            reader.skip(1)
        schema = properties.get(name, {})
        if _is_text(schema):
            yield calls.arguments('"')

            def escaped(text: str) -> Event:
                return calls.arguments(dump(text)[1:-1])

            if not (
                yield from reader.pass_exactly(("\n" + _PARAMETER_END, _PARAMETER_END), escaped)
            ):
                return
            yield calls.arguments('"')
        else:
            text, end = yield from reader.take_until((_PARAMETER_END,))
            if end is None:
                return
            yield calls.arguments(_written(text.removesuffix("\n"), schema))
    if marker is not None:
        yield calls.arguments("{}" if before == "{" else "}")
        yield calls.end()


def _is_text(schema: Any) -> bool:
    """Whether a value is written unchanged."""
    return (
        isinstance(schema, Mapping)
        and schema.get("type") == "string"
        and not any(keyword in schema for keyword in _BINDING)
    )


def _written(text: str, schema: Any) -> str:
    """The JSON text of a value; text that is not JSON, or must be a string, becomes a string."""
    textual = isinstance(schema, Mapping) and schema.get("type") == "string"
    if text in _PYTHON and not textual:
        return _PYTHON[text]
    try:
        value = load(text)
    except (ValueError, RecursionError):
        return dump(text)
    return dump(text) if textual and not isinstance(value, str) else text


def _options(schema: Any) -> list[str]:
    """The texts of a choice that can be written unchanged; none if some would be ambiguous."""
    if not isinstance(schema, Mapping) or set(schema) - _CHOICE or schema.get("type") != "string":
        return []
    options = schema.get("enum", [])
    plain = all(
        isinstance(text, str) and text and "\n" not in text and _written(text, schema) == dump(text)
        for text in options
    )
    return list(options) if plain else []


def _call(grammar: Grammar, tool: Tool) -> str:
    schema = tool.schema
    properties = schema.get("properties", {})
    if set(schema) - {"type", "properties", "required", "additionalProperties", "$defs",
                      "definitions", "description", "title", "$schema"}:  # fmt: skip
        return hermes.call(grammar, tool)
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts = [grammar.text(f"{_FUNCTION}{tool.name}>\n")]
    for name, inner in properties.items():
        begin = grammar.text(f"{_PARAMETER}{name}>\n")
        if _is_text(inner):
            part = f'{begin} {grammar.until(chr(10) + _PARAMETER_END)} "\\n"'
        elif options := _options(inner):
            end = grammar.text(chr(10) + _PARAMETER_END + chr(10))
            part = f"{begin} {grammar.one_of(*map(grammar.text, options))} {end}"
        else:
            value = grammar.json({**inner, **shared} if isinstance(inner, Mapping) else {})
            part = f"{begin} {value} {grammar.text(chr(10) + _PARAMETER_END + chr(10))}"
        parts.append(part if name in schema.get("required", ()) else f"({part})?")
    return " ".join([*parts, grammar.text(_FUNCTION_END)])


def _rules(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    bodies = [_call(grammar, tool) for tool in tools]
    one = f'"\\n" {grammar.one_of(*bodies)} "\\n" {grammar.marker(_END)}'
    return repeated(grammar, _BEGIN, one, forced, many)


FORMAT = Format("qwen3-coder", _fits, _read, _rules)
