"""Values whose lists and objects are marks in marks: `<item>…</item>`, `<key>…</key>`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cllm.api.formats.calls import dump, load
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.shapes import is_text, written

_MOST_DEPTH = 32
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_ITEM = "item"


def nested_text(value: Any, before: str) -> str:
    """A value as text; before: what stands before each mark."""
    if isinstance(value, Mapping):
        parts = [(name, inner) for name, inner in value.items() if inner is not None]
    elif isinstance(value, list):
        parts = [(_ITEM, inner) for inner in value]
    else:
        return value if isinstance(value, str) else dump(value)
    return "".join(
        f"{before}<{name}>{nested_text(inner, before)}{before}</{name}>" for name, inner in parts
    )


def decoded(text: str, schema: Any, before: str) -> str:
    """The JSON text of such a value."""
    value = _value(text, schema if isinstance(schema, Mapping) else {}, before, _MOST_DEPTH)
    return dump(value)


def _value(text: str, schema: Any, before: str, depth: int) -> Any:
    parts = _parts(text, before) if depth else None
    if parts is None:
        if not text.strip() and schema.get("type") in ("array", "object"):
            return [] if schema["type"] == "array" else {}
        if is_text(schema):
            return text
        return load(written(text, schema))
    kind = schema.get("type")
    if kind == "array" or (kind != "object" and all(name == _ITEM for name, _ in parts)):
        inner = _schema(schema.get("items"))
        return [_value(part, inner, before, depth - 1) for _, part in parts]
    properties = _schema(schema.get("properties"))
    return {
        name: _value(part, _schema(properties.get(name)), before, depth - 1) for name, part in parts
    }


def _schema(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _parts(text: str, before: str) -> list[tuple[str, str]] | None:
    """(name, inside) of the marks that a text consists of; None: it is not made of marks."""
    parts, rest = [], text.strip()
    while rest:
        if not rest.startswith(before + "<"):
            return None
        name, found, rest = rest[len(before) + 1 :].partition(">")
        begin, end = f"{before}<{name}>", f"{before}</{name}>"
        at, open_marks = 0, 1
        while found and open_marks:
            close = rest.find(end, at)
            if close < 0:
                return None
            open_marks += rest.count(begin, at, close) - 1
            at = close + len(end)
        if not found:
            return None
        parts.append((name, rest[: at - len(end)]))
        rest = rest[at:].lstrip()
    return parts or None


def nested_rule(grammar: Grammar, schema: Any, before: str) -> str:
    """The expression of such a value; schemas that ask for more than marks can hold are JSON."""
    if is_text(schema):
        return grammar.rule("/[^\\[\\]]*/")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    keywords = set(schema) - {"type", "description", "title"} if kind else set()
    if kind == "array" and keywords == {"items"}:
        inner = nested_rule(grammar, schema["items"], before)
        return f"({_mark(grammar, _ITEM, before)} {inner} {_mark(grammar, '/' + _ITEM, before)})+"
    if kind == "object" and "properties" in keywords and keywords <= {"properties", "required"}:
        properties, required = schema["properties"], schema.get("required", ())
        if required and all(map(_NAME.fullmatch, properties)):
            parts = []
            for name, inner in properties.items():
                part = (
                    f"{_mark(grammar, name, before)} {nested_rule(grammar, inner, before)} "
                    f"{_mark(grammar, '/' + name, before)}"
                )
                parts.append(part if name in required else f"({part})?")
            return grammar.rule(" ".join(parts))
    return grammar.json(schema if isinstance(schema, (Mapping, bool)) else {})


def _mark(grammar: Grammar, name: str, before: str) -> str:
    return grammar.marker(f"{before}<{name}>")
