"""Whether two schemas have no value in common, so that `oneOf` of them says the same as `anyOf`.

The answer True is certain; False means that it could not be shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cllm.engine.constraints.json_formats import DISJOINT, pattern_of

_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_SHAPES = {pattern_of(name) for name in DISJOINT}
_DEEPEST = 8
_MOST = 64  # options compared with each other

Resolve = Callable[[str], Any]


def all_disjoint(options: Sequence[Any], given: Sequence[Any], resolve: Resolve) -> bool:
    """Whether no value of one option fits another one, as the client gave it.

    options: as they are compiled, given: as they say. resolve: the schema that a $ref names.
    """
    return len(options) <= _MOST and all(
        _disjoint(one, other, resolve, _DEEPEST)
        for number, one in enumerate(options)
        for index, other in enumerate(given)
        if index != number
    )


def exclusive(options: list[Any]) -> list[Any]:
    """Options that each require one property: each then excludes those of the others."""
    names = [
        option["required"][0]
        for option in options
        if isinstance(option, dict) and set(option) == {"required"} and len(option["required"]) == 1
    ]
    if len(names) < max(2, len(options)) or len(set(names)) < len(names):
        return options
    others = [{other: False for other in names if other != name} for name in names]
    return [
        {"type": "object", "required": [name], "properties": properties}
        for name, properties in zip(names, others, strict=True)
    ]


def _disjoint(one: Any, other: Any, resolve: Resolve, depth: int) -> bool:
    one, other = _resolved(one, resolve), _resolved(other, resolve)
    if one is False or other is False:
        return True
    if depth == 0 or not isinstance(one, dict) or not isinstance(other, dict):
        return False
    for some, rest in ((one, other), (other, one)):
        for keyword, enough in (("anyOf", all), ("oneOf", all), ("allOf", any)):
            options = some.get(keyword)
            if options and enough(_disjoint(each, rest, resolve, depth - 1) for each in options):
                return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not {json.dumps(v) for v in values} & {json.dumps(v) for v in others}
    if values is not None or others is not None:
        finite, rest = (values, other) if values is not None else (others, one)
        return not any(_may_be(value, rest) for value in finite or ())
    shared = _kinds(one) & _kinds(other)
    if shared & {"integer", "number"}:
        shared = shared - {"integer", "number"} | {"number"}
    return all(_BY_KIND[kind](one, other, resolve, depth) for kind in shared)


def _resolved(schema: Any, resolve: Resolve) -> Any:
    for _ in range(_DEEPEST):
        if not isinstance(schema, dict) or set(schema) != {"$ref"}:
            break
        schema = resolve(schema["$ref"])
    return schema


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type", _TYPES)
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    return found | {"integer"} if "number" in found else found


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """All values that may fit, as comparable ones; None: not a finite list."""
    if "const" in schema:
        found = [schema["const"]]
    elif "enum" in schema:
        found = schema["enum"]
    elif _kinds(schema) <= {"null", "boolean"}:
        found = [value for value in (None, True, False) if _kind(value) in _kinds(schema)]
    else:
        return None
    return [_plain(value) for value in found]


def _plain(value: Any) -> Any:
    """1.0 is 1, and the order of keys says nothing."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    return value


def _kind(value: Any) -> str:
    for kind, types in (("boolean", bool), ("integer", int), ("number", float), ("string", str)):
        if isinstance(value, types):
            return kind
    return "null" if value is None else "array" if isinstance(value, list) else "object"


def _may_be(value: Any, schema: Mapping[str, Any]) -> bool:
    if _kind(value) not in _kinds(schema):
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = _range(schema)
        return low <= value <= high
    if isinstance(value, str):
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        return bool(least <= len(value) <= most)
    return True


def _range(schema: Mapping[str, Any]) -> tuple[float, float]:
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    return low, high


def _numbers(one: Any, other: Any, _resolve: Resolve, _depth: int) -> bool:
    (low, high), (least, greatest) = _range(one), _range(other)
    if high < least or greatest < low:
        return True
    for edge in {high, low} & {least, greatest}:  # touching, and one of them leaves out the edge
        outside = [
            edge in (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))
            for schema in (one, other)
        ]
        if any(outside) and (high == least or greatest == low):
            return True
    return False


def _strings(one: Any, other: Any, _resolve: Resolve, _depth: int) -> bool:
    if one.get("maxLength", math.inf) < other.get("minLength", 0):
        return True
    if other.get("maxLength", math.inf) < one.get("minLength", 0):
        return True
    patterns = {one.get("pattern"), other.get("pattern")}
    return len(patterns) == 2 and patterns <= _SHAPES


def _objects(one: Any, other: Any, resolve: Resolve, depth: int) -> bool:
    return any(
        _disjoint(_property(one, name), _property(other, name), resolve, depth - 1)
        for name in {*one.get("required", ()), *other.get("required", ())}
    )


def _property(schema: Mapping[str, Any], name: str) -> Any:
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)


def _never(_one: Any, _other: Any, _resolve: Resolve, _depth: int) -> bool:
    return False


_BY_KIND: Mapping[str, Callable[[Any, Any, Resolve, int], bool]] = {
    "null": _never,
    "boolean": _never,
    "number": _numbers,
    "string": _strings,
    "array": _never,
    "object": _objects,
}
