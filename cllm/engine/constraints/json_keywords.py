"""The keywords of JSON Schema: which values they take, which are held, which assert nothing.

Sources: JSON Schema drafts 3 to 2020-12, OpenAPI 3.0 (`nullable`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from cllm.engine.errors import InvalidRequest

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

MAX_COUNT = 2**31 - 1

MAX_PROPERTIES = 1000
"""Properties of one object; compiling takes time with their square."""

MAX_MULTIPLE = 10_000
"""Greatest multipleOf, in units of its last digit: the states of an automaton (27 s for 10⁶)."""


def is_number(value: object) -> bool:
    """Whether it is a number, infinity included, which a number of many digits becomes."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def is_texts(value: object) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_count(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 <= value <= MAX_COUNT and value == int(value)


def _is_multiple(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        return False
    return value < 1e300 and Fraction(repr(value)).numerator <= MAX_MULTIPLE


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_list(value: object) -> bool:
    return isinstance(value, list) and _is_json(value)


_Check = Callable[[Any], bool]

# Keyword -> whether its value is well-formed, and what is expected.
ASSERTIONS: Mapping[str, tuple[_Check, str]] = {
    "enum": (_is_list, "a list of values of JSON"),
    "const": (_is_json, "a value of JSON"),
    "required": (is_texts, "a list of names"),
    "minLength": (_is_count, "a count"),
    "maxLength": (_is_count, "a count"),
    "pattern": (_is_text, "an expression"),
    "format": (_is_text, "a format's name"),
    "minimum": (is_number, "a number"),
    "maximum": (is_number, "a number"),
    "exclusiveMinimum": (is_number, "a number, or true next to minimum"),
    "exclusiveMaximum": (is_number, "a number, or true next to maximum"),
    "multipleOf": (
        _is_multiple,
        f"a number above 0 of not more than {MAX_MULTIPLE} units of its last digit",
    ),
    "minItems": (_is_count, "a count"),
    "maxItems": (_is_count, "a count"),
    "minProperties": (_is_count, "a count"),
    "maxProperties": (_is_count, "a count"),
}
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")

APPLICATORS = (
    "$ref", "allOf", "anyOf", "oneOf", "properties", "patternProperties", "additionalProperties",
    "propertyNames", "items", "prefixItems", "additionalItems", "uniqueItems", "nullable", "type",
    "unevaluatedProperties",
)  # fmt: skip

# Keyword -> the values with which it asserts nothing; with others it cannot be held.
UNHELD: Mapping[str, tuple[Any, ...]] = {
    "not": (False,),
    "then": (True, {}),
    "else": (True, {}),
    "contains": (),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedItems": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
    "disallow": ([],),
    "extends": ({}, []),
}
_INSTEAD = {
    "not": "leave it out, or list what is allowed",
    "then": "use anyOf",
    "else": "use anyOf",
    "contains": "use prefixItems or items",
    "dependentRequired": "use anyOf",
    "dependentSchemas": "use anyOf",
    "dependencies": "use anyOf",
    "unevaluatedItems": "use items",
    "unevaluatedProperties": "use additionalProperties",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "disallow": "use type",
    "extends": "use allOf",
    "uniqueItems": "leave it out and check the answer",
    "propertyNames": "an enum, a pattern, or lengths, and no properties next to it",
}

# Words that are one letter away from a keyword and mean something else.
_ANNOTATIONS = ("title", "titles", "example", "examples", "formatted", "deprecated")
_KNOWN = (*ASSERTIONS, *APPLICATORS, *UNHELD, "$defs", "definitions", "minContains", "maxContains")


def asserts_nothing(keyword: str, value: Any, given: Mapping[str, Any]) -> bool:
    """Whether a keyword of UNHELD has no effect, with this value in this schema."""
    if keyword in ("then", "else") and "if" not in given:
        return True
    if keyword == "contains" and given.get("minContains") == 0 and "maxContains" not in given:
        return True
    return any(type(value) is type(none) and value == none for none in UNHELD[keyword])


def instead(keyword: str) -> str:
    """What to write in place of a keyword that cannot be held."""
    remedy = _INSTEAD.get(keyword, "leave it out")
    return f"no {keyword}, which cannot be held; {remedy}"


def misspelt(keyword: str) -> str | None:
    """The keyword that an unknown word is nearly the same as; None: it asserts nothing."""
    if len(keyword) < 6 or keyword in _ANNOTATIONS or keyword.startswith(("x-", "$")):
        return None
    plain = keyword.replace("_", "").lower()
    near = get_close_matches(plain, [known.lower() for known in _KNOWN], n=1, cutoff=0.87)
    return next((known for known in _KNOWN if near and known.lower() == near[0]), None)


def refusal(keyword: str, value: object, pointer: str, expected: str) -> InvalidRequest:
    """The error for a keyword with this value, at this place of the schema."""
    found = f"{keyword}: {json.dumps(value, ensure_ascii=False, default=repr)}"
    return InvalidRequest("json_schema", found, placed(expected, pointer))


def placed(expected: str, pointer: str) -> str:
    """The text with the place of the schema that it is about."""
    return f"{expected} (at {pointer})" if pointer else expected
