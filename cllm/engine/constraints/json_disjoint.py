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

Follow = Callable[[Any], Any]
"""A schema, or what it refers to if it says nothing else."""

MAX_COMPARED = 20_000
"""Pairs of schemas of one document; some 0.1 s."""


class Comparison:
    """Compares the schemas of one document."""

    __slots__ = ("_follow", "_left")

    def __init__(self, follow: Follow) -> None:
        self._follow = follow
        self._left = MAX_COMPARED

    def all_disjoint(self, options: Sequence[Any], given: Sequence[Any]) -> bool:
        """Whether no value of one option fits another one, as the client gave it.

        options: as they are compiled, given: as they say.
        """
        return len(options) <= _MOST and all(
            self._disjoint(one, other, _DEEPEST)
            for number, one in enumerate(options)
            for index, other in enumerate(given)
            if index != number
        )

    def _disjoint(self, one: Any, other: Any, depth: int) -> bool:
        one, other = self._follow(one), self._follow(other)
        self._left -= 1
        if one is False or other is False:
            return True
        if min(depth, self._left) <= 0 or not isinstance(one, dict) or not isinstance(other, dict):
            return False
        for some, rest in ((one, other), (other, one)):
            for keyword, enough in (("anyOf", all), ("oneOf", all), ("allOf", any)):
                options = some.get(keyword)
                if options and enough(self._disjoint(each, rest, depth - 1) for each in options):
                    return True
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not {json.dumps(v) for v in values} & {json.dumps(v) for v in others}
        if values is not None or others is not None:
            finite, rest = (values, other) if values is not None else (others, one)
            return not any(_may_be(value, rest) for value in finite or ())
        return all(
            self._differ(kind, one, other, depth)
            for kind in _kinds(one) & _kinds(other) - {"integer"}
            | ({"number"} if "integer" in _kinds(one) & _kinds(other) else set())
        )

    def _differ(
        self, kind: str, one: Mapping[str, Any], other: Mapping[str, Any], depth: int
    ) -> bool:
        """Whether no value of this type fits both."""
        if kind == "number":
            return _numbers_differ(one, other)
        if kind == "string":
            return _strings_differ(one, other)
        return kind == "object" and any(
            self._disjoint(_property(one, name), _property(other, name), depth - 1)
            for name in {*one.get("required", ()), *other.get("required", ())}
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


def _property(schema: Mapping[str, Any], name: str) -> Any:
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)


def _numbers_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
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


def _strings_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one.get("maxLength", math.inf) < other.get("minLength", 0):
        return True
    if other.get("maxLength", math.inf) < one.get("minLength", 0):
        return True
    patterns = {one.get("pattern"), other.get("pattern")}
    return len(patterns) == 2 and patterns <= _SHAPES
