"""From a JSON schema to a grammar that allows exactly its values, or an error that names a keyword.

llguidance compiles most schemas; json_writer.py writes what it would change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from cllm.engine.constraints.json_exact import needs_writing, parts, with_exact_bounds
from cllm.engine.constraints.json_formats import FORMATS, pattern_of
from cllm.engine.constraints.json_keywords import MAX_MULTIPLE
from cllm.engine.constraints.json_normal import normalized
from cllm.engine.constraints.json_writer import Writer
from cllm.engine.errors import InvalidRequest

MAX_PATTERNS = 8
"""Patterns of a schema that has allOf: intersecting 20 expressions took 31 s and 2.4 GB."""

_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_OF_FORMATS = {pattern_of(name) for name in FORMATS}
# One layout for JSON. A token without an alternative needs no computation, and a model cannot
# generate white space without end.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A further property could otherwise be a declared one, spelled "\\u0061".
_UNESCAPED = {**_LAYOUT, "json_allowed_escapes": 'nrbtf\\"'}


def lark_expression(schema: Mapping[str, Any] | bool) -> str:
    """Return the schema as the right side of a Lark rule.

    Raises InvalidRequest, which names the keyword, for a schema that cannot be enforced exactly.
    """
    return expression_of(normalized(schema))


def expression_of(schema: Any) -> str:
    """The same of a schema that is in the compiled form."""
    inner = schema if isinstance(schema, dict) else {} if schema else {"enum": []}
    _check_sizes(inner)
    exact = with_exact_bounds(inner)
    layout = _UNESCAPED if any(map(_has_further_names, parts(exact))) else _LAYOUT
    if needs_writing(exact):
        return Writer(exact, layout).expression()
    return f"%json {json.dumps({**exact, 'x-guidance': layout})}"


def _has_further_names(schema: Mapping[str, Any]) -> bool:
    declared = schema.keys() & {"properties", "patternProperties", "required"}
    return bool(declared) and schema.get("additionalProperties", True) is not False


def _check_sizes(schema: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for intersections that take minutes."""
    patterns, intersects = 0, False
    multiples: set[Fraction] = set()
    for part in parts(schema):
        patterns += part.get("pattern", None) not in {None, *_OF_FORMATS}
        patterns += len(part.get("patternProperties", ()))
        intersects |= "allOf" in part
        if "multipleOf" in part:
            multiples.add(Fraction(repr(part["multipleOf"])))
            intersects |= not part.keys().isdisjoint(_COMBINING)
    if intersects and patterns > MAX_PATTERNS:
        expected = f"at most {MAX_PATTERNS} patterns in a schema that has allOf"
        raise InvalidRequest("json_schema", "pattern", expected)
    if intersects and len(multiples) > 1 and _common(multiples) > MAX_MULTIPLE:
        expected = f"multiples whose least common one has at most {MAX_MULTIPLE} units, with allOf"
        raise InvalidRequest("json_schema", "multipleOf", expected)


def _common(multiples: set[Fraction]) -> int:
    """The least common multiple, in units of the last digit of any; llguidance's has 32 bits."""
    unit = 10 ** max(len(str(each.denominator)) for each in multiples)
    while unit > 1 and all((each * (unit // 10)).denominator == 1 for each in multiples):
        unit //= 10
    return math.lcm(*((each * unit).numerator for each in multiples))
