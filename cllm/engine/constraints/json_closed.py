"""Which properties an object may have where its schema leaves it open.

An object with `properties` and without `additionalProperties` has no further properties: models
invent some otherwise, and do not end. Schemas of one object (`allOf`, `$ref`, options next to
properties) are closed together, by the names that any of them declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cllm.engine.constraints.json_keywords import MAX_PROPERTIES, TYPES
from cllm.engine.constraints.json_references import Place
from cllm.engine.errors import InvalidRequest

IN_PLACE = ("allOf", "anyOf", "oneOf")

MAX_LOOKS = 20_000
"""Schemas of one document that are looked at for their names; some 0.1 s."""

Find = Callable[[str, str], Place | None]


def kinds_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows, as far as its own `type` says."""
    kinds = schema.get("type", TYPES)
    if kinds == "any":
        return set(TYPES)
    kinds = kinds if isinstance(kinds, (list, tuple)) else [kinds]
    found = {kind.lower() for kind in kinds if isinstance(kind, str)}
    return found if found else set(TYPES)


class Together:
    """The names of all schemas that describe one object, of one document."""

    __slots__ = ("_find", "_left")

    def __init__(self, find: Find) -> None:
        """find: what a reference names, from its text and base."""
        self._find = find
        self._left = MAX_LOOKS

    def names(self, given: Mapping[str, Any], place: Place) -> set[str] | None:
        """Their names, if there are several schemas; None: only this one.

        An empty set: they stay open. Raises InvalidRequest.
        """
        several = {"$ref", *IN_PLACE} & given.keys()
        own = {"properties", "patternProperties", "required", "additionalProperties"} & given.keys()
        if not several:
            return None
        alone = len(several) == 1 and (several != {"allOf"} or len(_list(given["allOf"])) == 1)
        if alone and not own:
            return None  # each of them for itself
        names: set[str] = set()
        return names if self._collected(place, names, set()) else set()

    def _collected(self, place: Place, names: set[str], seen: set[str]) -> bool:
        """Add the names that the schemas declare; False: one of them is open."""
        if place.pointer in seen or not isinstance(place.value, dict):
            return True
        seen.add(place.pointer)
        self._left -= 1
        if self._left < 0:
            expected = "fewer schemas that describe one object together (allOf, $ref)"
            raise InvalidRequest("json_schema", "a schema", expected)
        schema = place.value
        for keyword in ("additionalProperties", "patternProperties", "propertyNames"):
            if schema.get(keyword) is not None:
                return False
        if isinstance(schema.get("properties"), dict):
            names.update(schema["properties"])
        inner = [
            place.at(keyword, index)
            for keyword in IN_PLACE
            for index in range(len(_list(schema.get(keyword))))
        ]
        if isinstance(schema.get("$ref"), str):
            target = self._find(schema["$ref"], place.base)
            inner += [target] if target is not None else []
        return all(self._collected(each, names, seen) for each in inner)


def close(made: dict[str, Any], together: set[str] | None) -> None:
    """Allow no properties but the declared ones, if the schema does not say."""
    if {"const", "enum"} & made.keys():
        return
    if "properties" in made:
        made.setdefault("type", "object")
    if "additionalProperties" in made:
        return
    if together is None:
        if "properties" not in made:
            return
        together = set(made["properties"])
    elif not together:
        return
    names = together | set(made.get("required", ()))
    properties = with_names(made.get("properties", {}), names)
    if made.get("minProperties", 0) > len(properties) or len(properties) > MAX_PROPERTIES:
        return
    made["properties"] = properties
    made["additionalProperties"] = False


def evaluated(given: Mapping[str, Any], made: dict[str, Any], together: set[str] | None) -> bool:
    """Write unevaluatedProperties as additionalProperties; False: it cannot be held."""
    value = given.get("unevaluatedProperties")
    if value is None or value is True or value == {} or "additionalProperties" in given:
        return True
    if "object" not in kinds_of(given):
        return True
    alone = not {"$ref", *IN_PLACE} & given.keys()
    if value is not False or not (alone or (together is not None and _has_no_options(given))):
        return False
    made["properties"] = with_names(made.get("properties", {}), together or set())
    made["additionalProperties"] = False
    return True


def _has_no_options(given: Mapping[str, Any]) -> bool:
    return not {"anyOf", "oneOf"} & given.keys()


COUNTED = "at most one more than required, or additionalProperties: false"


def miscounted(made: Mapping[str, Any]) -> bool:
    """Whether a further property that is written twice breaks minProperties; see COUNTED."""
    more = made.get("minProperties", 0) - len(made.get("required", ()))
    return bool(more > 1) and made.get("additionalProperties", True) is not False


def with_rule(rule: Any, made: dict[str, Any]) -> bool:
    """Write propertyNames as properties, or as one patternProperties; False: it cannot be held."""
    if isinstance(rule, dict):
        texts = "string" in kinds_of(rule)
        rule = {word: value for word, value in rule.items() if word != "type"} if texts else False
    if rule is True or rule == {}:
        return True
    further, words = made.get("additionalProperties", True), set(rule or {})
    if "patternProperties" in made:
        return False
    if rule is False or words in ({"enum"}, {"const"}):
        allowed = rule.get("enum", [rule.get("const")]) if rule else []
        properties = made.get("properties", {})
        made["properties"] = {
            name: properties.get(name, further) for name in allowed if isinstance(name, str)
        }
    elif "properties" not in made and (words == {"pattern"} or words <= {"minLength", "maxLength"}):
        least, most = rule.get("minLength", 0), rule.get("maxLength", "")
        pattern = rule.get("pattern", f"^[\\s\\S]{{{least},{most}}}$")
        made["patternProperties"] = {pattern: further}
    else:
        return False
    made["additionalProperties"] = False
    return True


def with_names(properties: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """The properties and, with any value, the names that are not among them."""
    return {**properties, **dict.fromkeys(sorted(names - properties.keys()), True)}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
