"""Finds the numbers in a JSON schema that llguidance would change, and makes its bounds exact.

A schema is walked by its parts: the keywords below that hold other schemas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from cllm.engine.constraints.json_numbers import EXACT, MAX_DIGITS, apart, inward, is_exact
from cllm.engine.errors import InvalidRequest

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
ONE = ("items", "additionalItems", "additionalProperties")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
DEFINED = ("$defs", "definitions")
BEYOND = f"beyond {EXACT} (2^53)"

Schema = Mapping[str, Any]


def with_exact_bounds(schema: Any) -> Any:
    """The schema with fractional bounds moved inward to the nearest that llguidance reads exactly.

    Raises InvalidRequest for a bound that has no such number and is not an integer.
    """
    if not isinstance(schema, dict):
        return schema
    changed: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in BOUNDS:
            changed[keyword] = _bound(keyword, value)
        elif keyword in NAMED:
            changed[keyword] = {name: with_exact_bounds(inner) for name, inner in value.items()}
        elif keyword in MANY and isinstance(value, list):
            changed[keyword] = [with_exact_bounds(inner) for inner in value]
        elif keyword in ONE:
            changed[keyword] = with_exact_bounds(value)
        else:
            changed[keyword] = value
    _open_ends(changed)
    return changed


def _open_ends(schema: dict[str, Any]) -> None:
    """Move an exclusive integer bound of a number inward, where llguidance would include it.

    That is where the other bound has the same integer part, as in 0 < x < 0.5.
    """
    if schema.get("type") == "integer":
        return
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    if schema.get("exclusiveMinimum") == low and 0 <= low == int(low) < high < low + 1:
        moved = inward(apart(low, high), upper=False)
        schema["exclusiveMinimum"] = low if moved is None else moved
    elif schema.get("exclusiveMaximum") == high and 0 >= high == int(high) > low > high - 1:
        moved = inward(-apart(-high, -low), upper=True)
        schema["exclusiveMaximum"] = high if moved is None else moved


def needs_writing(schema: Any) -> bool:
    """Whether llguidance would change a number of this schema, whose bounds are exact."""
    return any(not is_exact(number) for part in parts(schema) for number in _numbers_of(part))


def _bound(keyword: str, value: float) -> float:
    if isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            found = f"{keyword}: an integer of more than {MAX_DIGITS} digits"
            raise InvalidRequest("json_schema", found, f"at most {MAX_DIGITS} digits")
        return value
    if abs(value) > EXACT:  # also infinities
        expected = f"an integer written without a point or exponent, or no bound {BEYOND}"
        raise InvalidRequest("json_schema", f"{keyword}: {value!r}", expected)
    if value.is_integer():
        return int(value)
    moved = inward(value, upper=keyword.endswith("aximum"))
    if moved is None:
        raise InvalidRequest("json_schema", f"{keyword}: {value!r}", "a number further from 0")
    return moved


def parts(schema: Any) -> Iterator[Schema]:
    """The schema and all its subschemas, definitions included; references are not followed."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield part
        for keyword, value in part.items():
            if keyword in NAMED:
                waiting += value.values()
            elif keyword in MANY and isinstance(value, list):
                waiting += value
            elif keyword in ONE:
                waiting.append(value)


def _numbers_of(part: Schema) -> Iterator[float]:
    """The numbers in the schema's own bounds and values."""
    for keyword in BOUNDS:
        if keyword in part:
            yield part[keyword]
    waiting = [part[keyword] for keyword in ("const", "enum") if keyword in part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value


def target(reference: str) -> str:
    """What a $ref names, without escapes (RFC 6901, section 6)."""
    return unquote(reference).replace("~1", "/").replace("~0", "~")


def targets(schema: Any) -> set[str]:
    """What the references in a schema and in its parts name."""
    return {target(part["$ref"]) for part in parts(schema) if "$ref" in part}
