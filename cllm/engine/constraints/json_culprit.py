"""Finds the part of a JSON schema for which the whole cannot be compiled, for the error's text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from cllm.engine.constraints.json_keywords import placed
from cllm.engine.constraints.json_normal import Normalizer
from cllm.engine.constraints.json_references import Place
from cllm.engine.constraints.json_schema import expression_of
from cllm.engine.errors import InvalidRequest

_MOST = 200  # parts compiled one by one
_ENOUGH_S = 1.0  # processor time after which the part found so far is named
_IN_ONE = ("additionalProperties", "items", "additionalItems", "propertyNames")
_IN_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_BY_NAME = ("properties", "patternProperties")
_UNSATISFIABLE = "Unsatisfiable"

Refuses = Callable[[str], str | None]


def culprit(schema: Any, reason: str, refuses: Refuses) -> str:
    """The reason with the innermost place that has it. refuses: why an expression fails, if so."""
    normalizer = Normalizer(schema)
    place, seen, began = normalizer.root, {""}, time.process_time()
    found = True
    while found and time.process_time() - began < _ENOUGH_S:
        found = False
        for part in _parts(normalizer, place):
            if part.pointer in seen or len(seen) > _MOST:
                continue
            seen.add(part.pointer)
            why = _reason(normalizer, part, refuses)
            if why is not None and (_UNSATISFIABLE not in why or _UNSATISFIABLE in reason):
                place, reason, found = part, why, True
                break
    return placed(reason, place.pointer)


def _reason(normalizer: Normalizer, part: Place, refuses: Refuses) -> str | None:
    try:
        schema = normalizer.whole(part)
        return None if isinstance(schema, bool) else refuses(expression_of(schema))
    except InvalidRequest as error:
        return error.expected
    except RecursionError:
        return None


def _parts(normalizer: Normalizer, place: Place) -> Iterator[Place]:
    """The schemas directly within this one, and the one that it refers to."""
    schema = place.value
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in _BY_NAME and isinstance(value, dict):
            yield from (place.at(keyword, name) for name in value)
        elif keyword in _IN_MANY and isinstance(value, list):
            yield from (place.at(keyword, index) for index in range(len(value)))
        elif keyword in _IN_ONE and isinstance(value, dict):
            yield place.at(keyword)
        elif keyword == "$ref" and isinstance(value, str):
            target = normalizer.find(value, place.base)
            if target is not None:
                yield target
