"""Schemas of arguments, as formats see them that write each argument by itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cllm.api.formats.calls import dump, load

_PLAIN = {"type", "properties", "required", "additionalProperties", "$defs", "definitions",
          "description", "title", "$schema", "strict"}  # fmt: skip
_SHARED = ("#/$defs/", "#/definitions/")
# What a template's Python writes for JSON's names.
_PYTHON = {"True": "true", "False": "false", "None": "null"}
_KINDS: dict[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object",
    type(None): "null",
}  # fmt: skip
# With these keywords a text follows its schema only if it is written as JSON or chosen from a list.
_BINDING = ("enum", "const", "pattern", "format", "minLength", "maxLength")
_CHOICE = {"type", "enum", "title", "description", "default"}
_MOST_PYTHON = 2**16  # characters of a value that is read as Python's


class Argument(NamedTuple):
    """One argument of a tool."""

    name: str
    schema: Any
    required: bool


def arguments_of(schema: Mapping[str, Any], names: re.Pattern[str]) -> list[Argument] | None:
    """The arguments in their order; None where they cannot be written one by one.

    names: what names can be written.
    """
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    if set(schema) - _PLAIN or not set(required) <= set(properties):
        return None
    if not all(map(names.fullmatch, properties)) or refers(properties, _SHARED):
        return None
    return [
        Argument(
            name, {**inner, **shared} if isinstance(inner, Mapping) else inner, name in required
        )
        for name, inner in properties.items()
    ]


def refers(value: Any, but: tuple[str, ...] = ()) -> bool:
    """Whether a `$ref` is in a schema, other than those that begin like this."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            target = each.get("$ref")
            if isinstance(target, str) and not target.startswith(but):
                return True
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return False


def is_text(schema: Any) -> bool:
    """Whether a value is any text, which is written unchanged."""
    return (
        isinstance(schema, Mapping)
        and schema.get("type") == "string"
        and not any(keyword in schema for keyword in _BINDING)
    )


def options_of(schema: Any) -> list[str]:
    """The texts of a choice that can be written unchanged; none if some would be ambiguous."""
    if not isinstance(schema, Mapping) or set(schema) - _CHOICE or schema.get("type") != "string":
        return []
    options = schema.get("enum", [])
    plain = all(
        isinstance(text, str)
        and text
        and not set(text) & set("\n<>")
        and written(text, schema) == dump(text)
        for text in options
    )
    return list(options) if plain else []


def kinds_of(schema: Any) -> set[str] | None:
    """The types that a value may have; None: any."""
    if not isinstance(schema, Mapping):
        return None
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    if isinstance(kinds, list):
        return set(kinds)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            found = [kinds_of(each) for each in schema[keyword]]
            if None not in found:
                return {kind for each in found for kind in each or ()}
    if "const" in schema:
        return {kind_of(schema["const"])}
    if isinstance(schema.get("enum"), list):
        return {kind_of(each) for each in schema["enum"]}
    return None


def kind_of(value: Any) -> str:
    """JSON's name of a value's type."""
    return _KINDS[type(value)]


def written(text: str, schema: Any) -> str:
    """The JSON text of a value of this schema; what is not JSON, or must be a text, is a string."""
    kinds = kinds_of(schema)
    textual = kinds is not None and "string" in kinds
    bare = text.strip()
    if bare in _PYTHON and not textual:
        return _PYTHON[bare]
    try:
        value = load(text)
    except (ValueError, RecursionError):
        return dump(text) if textual else _from_python(text)
    kind = kind_of(value)
    if textual and kinds is not None and kind not in kinds:
        return dump(text)
    return text


def _from_python(text: str) -> str:
    """A list or object in Python's form as JSON; anything else as a string."""
    if text.lstrip()[:1] in ("[", "{", "(") and len(text) <= _MOST_PYTHON:
        try:
            value = ast.literal_eval(text.strip())
            return dump(list(value) if isinstance(value, tuple) else value)
        except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
            pass
    return dump(text)
