"""Which JSON schemas can be enforced exactly; other keywords are refused by name, never ignored.

llguidance refuses keywords that it knows and cannot enforce, but ignores unknown ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from cllm.engine.constraints.json_exact import (
    MANY,
    NAMED,
    ONE,
    needs_writing,
    with_exact_bounds,
)
from cllm.engine.constraints.json_writer import Writer
from cllm.engine.errors import InvalidRequest

MAX_DEPTH = 64
"""Schemas within schemas."""

MAX_REFERENCES = 1000
"""$ref's of a schema: a chain of some 4 000 overflows llguidance's stack."""

MAX_PROPERTIES = 1000
"""Properties of one object; compiling takes time with their square."""

MAX_PATTERNS = 8
"""Patterns of a schema that has allOf: intersecting 20 expressions took 31 s and 2.4 GB."""

MAX_MULTIPLE = 10_000
"""Greatest multipleOf, in units of its last digit: the states of an automaton (27 s for 10⁶)."""

_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_Check = Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**31 - 1


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_multiple(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        return False
    return Fraction(repr(value)).numerator <= MAX_MULTIPLE


# Keyword -> whether its value is well-formed.
_ASSERTIONS: Mapping[str, _Check] = {
    "$ref": lambda value: isinstance(value, str) and value.startswith("#"),
    "type": lambda value: _is_text(value) or _is_texts(value),
    "enum": lambda value: isinstance(value, list),
    "const": lambda value: True,
    "required": _is_texts,
    "minLength": _is_count,
    "maxLength": _is_count,
    "pattern": _is_text,
    "format": _is_text,
    "minimum": _is_number,
    "maximum": _is_number,
    "exclusiveMinimum": _is_number,
    "exclusiveMaximum": _is_number,
    "multipleOf": _is_multiple,
    "minItems": _is_count,
    "maxItems": _is_count,
    "minProperties": _is_count,
    "maxProperties": _is_count,
}
_REMARKS = (
    "$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "example",
    "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
    "contentSchema", "discriminator",
)  # fmt: skip
# One layout for JSON. A token without an alternative needs no computation, and a model cannot
# generate white space without end.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_EXPECTED = {
    "$ref": 'a reference within the schema ("#/…")',
    "multipleOf": f"a number above 0 of not more than {MAX_MULTIPLE} units of its last digit",
}


def check_schema(schema: object) -> None:
    """Raise InvalidRequest with the keyword for a schema that cannot be enforced exactly."""
    checker = _Checker()
    checker.visit(schema, MAX_DEPTH)
    if checker.references > MAX_REFERENCES:
        raise InvalidRequest("json_schema", "$ref", f"at most {MAX_REFERENCES} references")
    if checker.intersects and checker.patterns > MAX_PATTERNS:
        expected = f"at most {MAX_PATTERNS} patterns in a schema that has allOf"
        raise InvalidRequest("json_schema", "pattern", expected)
    if (
        checker.intersects
        and len(checker.multiples) > 1
        and _common(checker.multiples) > MAX_MULTIPLE
    ):
        expected = f"multiples whose least common one has at most {MAX_MULTIPLE} units, with allOf"
        raise InvalidRequest("json_schema", "multipleOf", expected)


def lark_expression(schema: Mapping[str, Any] | bool) -> str:
    """Return the schema as the right side of a Lark rule.

    Raises InvalidRequest, which names the keyword, for a schema that cannot be enforced exactly.
    """
    check_schema(schema)
    inner = dict(schema) if isinstance(schema, Mapping) else {} if schema else {"enum": []}
    exact = with_exact_bounds(inner)
    if needs_writing(exact):
        return Writer(exact, _REMARKS, _LAYOUT).expression()
    return f"%json {json.dumps({**exact, 'x-guidance': _LAYOUT})}"


def _common(multiples: set[Fraction]) -> int:
    """The least common multiple, in units of the last digit of any; llguidance's has 32 bits."""
    unit = 10 ** max(len(str(each.denominator)) for each in multiples)
    while unit > 1 and all((each * (unit // 10)).denominator == 1 for each in multiples):
        unit //= 10
    return math.lcm(*((each * unit).numerator for each in multiples))


class _Checker:
    __slots__ = ("intersects", "multiples", "patterns", "references")

    def __init__(self) -> None:
        self.references = 0
        self.patterns = 0
        self.multiples: set[Fraction] = set()
        self.intersects = False

    def visit(self, schema: object, depth: int) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise InvalidRequest("json_schema", schema, "a schema: an object, true or false")
        if depth == 0:
            raise InvalidRequest("json_schema", "a schema", f"at most {MAX_DEPTH} within another")
        self.intersects |= "multipleOf" in schema and not schema.keys().isdisjoint(_COMBINING)
        for keyword, value in schema.items():
            self._keyword(keyword, value, depth - 1)

    def _keyword(self, keyword: str, value: Any, depth: int) -> None:
        if keyword in _ASSERTIONS:
            if not _ASSERTIONS[keyword](value):
                expected = _EXPECTED.get(keyword, "a value that JSON Schema allows here")
                raise InvalidRequest("json_schema", f"{keyword}: {value!r}", expected)
            self.references += keyword == "$ref"
            self.patterns += keyword == "pattern"
            if keyword == "multipleOf":
                self.multiples.add(Fraction(repr(value)))
        elif keyword in NAMED:
            if not isinstance(value, dict):
                raise InvalidRequest("json_schema", f"{keyword}: {value!r}", "schemas by name")
            if keyword.endswith("roperties") and len(value) > MAX_PROPERTIES:
                raise InvalidRequest(
                    "json_schema", f"{len(value)} {keyword}", f"at most {MAX_PROPERTIES}"
                )
            self.patterns += len(value) * (keyword == "patternProperties")
            for inner in value.values():
                self.visit(inner, depth)
        elif keyword in MANY and isinstance(value, list):
            self.intersects |= keyword == "allOf"
            for inner in value:
                self.visit(inner, depth)
        elif keyword in ONE:
            self.visit(value, depth)
        elif keyword in MANY:
            raise InvalidRequest("json_schema", f"{keyword}: {value!r}", "a list of schemas")
        elif keyword not in _REMARKS:
            known = sorted({*_ASSERTIONS, *ONE, *MANY, *NAMED})
            raise InvalidRequest(
                "json_schema", keyword, f"no keywords that are not supported ({', '.join(known)})"
            )
