"""Gemma: `call:name{key:value}` between markers; strings are between marks instead of quotes.

Source: the chat templates of google/functiongemma-270m-it and google/gemma-4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls, dump, load
from cllm.api.formats.format import Called, next_mark
from cllm.api.formats.grammar import Grammar, repeated
from cllm.api.formats.reader import Reader, Steps
from cllm.api.formats.shapes import refers

_HEAD = re.compile(r"\s*call:\s*([\w.-]+)\s*(?=\{)")
_PLAIN = ("integer", "number", "boolean", "null")
_COMMON = {"type", "title", "description", "default"}


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """The marks of one generation of Gemma."""

    begin: str
    end: str
    quote: str

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        while (yield from next_mark(reader, (self.begin,), frames)) is not None:
            before = reader.dropped + self.begin
            body, marker = yield from reader.take_until((self.end,))
            head = _HEAD.match(body)
            arguments = None
            if head is not None and head[1] in calls.tools:
                arguments = _decoded(body[head.end() :].strip(), self.quote)
            if head is None or arguments is None:
                if marker is not None or not reader.cut:
                    yield Text(before + body + (marker or ""))
            else:
                yield from calls.whole(head[1], arguments)
                yield from reader.space()

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        bodies = [
            f"{grammar.text('call:' + tool.name)} {_rule(grammar, tool.schema, self.quote)}"
            for tool in tools
        ]
        one = f"{grammar.one_of(*bodies)} {grammar.marker(self.end)}"
        return repeated(grammar, self.begin, one, forced, many)

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        return "".join(
            f"{self.begin}call:{name}{_written(arguments, self.quote)}{self.end}"
            for name, arguments in called
        )


def _written(value: Any, quote: str) -> str:
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_written(each, quote)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(_written(each, quote) for each in value)}]"
    return f"{quote}{value}{quote}" if isinstance(value, str) else dump(value)


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


def _rule(grammar: Grammar, schema: Any, quote: str) -> str:
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
        item = grammar.rule(_rule(grammar, schema["items"], quote))
        return f'"[" ({item} ("," {item})*)? "]"'
    if kind == "object":
        required = schema.get("required", ())
        parts, first = [], True
        for name, inner in sorted(
            schema["properties"].items(), key=lambda item: item[0] not in required
        ):
            part = f"{grammar.text(name + ':')} {_rule(grammar, inner, quote)}"
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
            and set(schema.get("required", ())) <= set(names)
            and not refers(names)
        )
    return kind in _PLAIN
