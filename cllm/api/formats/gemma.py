"""Gemma: `call:name{key:value}` between markers; strings are between marks instead of quotes.

Source: the chat templates of google/functiongemma-270m-it and google/gemma-4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls, dump, load
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar, repeated
from cllm.api.formats.reader import Reader, Steps

_HEAD = re.compile(r"\s*call:\s*([\w.-]+)\s*(?=\{)")
_PLAIN = ("integer", "number", "boolean", "null")
_COMMON = {"type", "title", "description", "default"}


class Marks(NamedTuple):
    """The markers of one generation of Gemma."""

    begin: str
    end: str
    quote: str


_FUNCTION_GEMMA = Marks("<start_function_call>", "<end_function_call>", "<escape>")
_GEMMA_4 = Marks("<|tool_call>", "<tool_call|>", '<|"|>')


def _fits(source: str, marks: Marks) -> bool:
    return marks.begin in source


def _read(reader: Reader, calls: Calls, marks: Marks) -> Steps[None]:
    while (yield from reader.pass_until((marks.begin,), Text)) is not None:
        before = reader.dropped + marks.begin
        body, marker = yield from reader.take_until((marks.end,))
        head = _HEAD.match(body)
        arguments = None
        if head is not None and head[1] in calls.tools:
            arguments = _decoded(body[head.end() :].strip(), marks.quote)
        if head is None or arguments is None:
            yield Text(before + body + (marker or ""))
        else:
            yield from calls.whole(head[1], arguments)
            yield from reader.space()


def _decoded(text: str, quote: str) -> str | None:
    """The arguments' JSON text, if they are an object."""
    written = _as_json(text, quote)
    try:
        return written if isinstance(load(written), dict) else None
    except (ValueError, RecursionError):
        return None


def _as_json(text: str, quote: str) -> str:
    """The same as JSON: strings between marks become quoted, names before colons too."""
    parts = text.split(quote)
    return "".join(
        dump(part) if number % 2 else _quoted_names(part) for number, part in enumerate(parts)
    )


_NAME_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|([A-Za-z_][\w.-]*)(?=\s*:)')


def _quoted_names(text: str) -> str:
    return _NAME_OR_STRING.sub(lambda found: f'"{found[1]}"' if found[1] else found[0], text)


def _grammar(
    grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool, marks: Marks
) -> str:
    bodies = [
        f"{grammar.text('call:' + tool.name)} {_value(grammar, tool.schema, marks.quote)}"
        for tool in tools
    ]
    one = f"{grammar.one_of(*bodies)} {grammar.marker(marks.end)}"
    return repeated(grammar, marks.begin, one, forced, many)


def _value(grammar: Grammar, schema: Any, quote: str) -> str:
    """A value in Gemma's form if the schema is simple enough, else as JSON."""
    if not _is_simple(schema):
        return grammar.json(schema)
    kind = schema["type"]
    mark = grammar.marker(quote)
    if kind == "string":
        if "enum" in schema:
            return f"{mark} ({' | '.join(map(grammar.text, schema['enum']))}) {mark}"
        return f"{mark} {grammar.until(quote)}"
    if kind == "array":
        item = grammar.rule(_value(grammar, schema["items"], quote))
        return f'"[" ({item} ("," {item})*)? "]"'
    if kind == "object":
        required = schema.get("required", ())
        parts, first = [], True
        for name, inner in sorted(
            schema["properties"].items(), key=lambda item: item[0] not in required
        ):
            part = f"{grammar.text(name + ':')} {_value(grammar, inner, quote)}"
            if name in required:
                parts.append(part if first else f'"," {part}')
                first = False
            elif not first:
                parts.append(f'("," {part})?')
        return grammar.rule(" ".join(['"{"', *parts, '"}"']))
    return grammar.json(schema)


def _is_simple(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    kind, keywords = schema.get("type"), set(schema) - _COMMON
    if kind == "string":
        options = schema.get("enum", ("x",))
        return keywords <= {"enum"} and all(isinstance(each, str) and each for each in options)
    if kind == "array":
        return keywords <= {"items"} and _is_simple(schema.get("items"))
    if kind == "object":
        names = schema.get("properties", {})
        return (
            keywords <= {"properties", "required", "additionalProperties"}
            and "properties" in schema
            and all(re.fullmatch(r"[A-Za-z_][\w.-]*", name) for name in names)
            and all(map(_is_simple, names.values()))
        )
    return kind in _PLAIN


def _format(name: str, marks: Marks, think: tuple[str, str]) -> Format:
    return Format(
        name,
        partial(_fits, marks=marks),
        partial(_read, marks=marks),
        partial(_grammar, marks=marks),
        think,
        spell_special=True,
    )


FUNCTION_GEMMA = _format("functiongemma", _FUNCTION_GEMMA, ("<think>", "</think>"))
GEMMA_4 = _format("gemma-4", _GEMMA_4, ("<|channel>thought", "<channel|>"))
