"""A client's JSON schema in the form that is compiled: keywords that are held, and no others.

- Words that assert nothing are left out; a keyword that cannot be held is refused with its place.
- Other spellings get one form: `definitions`, anchors and pointers become `$defs`, lists in `items`
  become `prefixItems`, formats become patterns, `oneOf` of disjoint schemas becomes `anyOf`.
- An object with `properties` and without `additionalProperties` has no further ones
  (json_closed.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cllm.engine.constraints.json_closed import (
    COUNTED,
    Together,
    close,
    evaluated,
    kinds_of,
    miscounted,
    with_rule,
)
from cllm.engine.constraints.json_disjoint import Comparison, exclusive
from cllm.engine.constraints.json_formats import LENGTHS, pattern_of
from cllm.engine.constraints.json_keywords import (
    ASSERTIONS,
    COUNTS,
    MAX_PROPERTIES,
    TYPES,
    UNHELD,
    asserts_nothing,
    instead,
    is_number,
    misspelt,
    refusal,
)
from cllm.engine.constraints.json_numbers import EXACT
from cllm.engine.constraints.json_references import Place, References
from cllm.engine.errors import InvalidRequest

MAX_DEPTH = 64
"""Schemas within schemas."""

MAX_REFERENCES = 1000
"""$ref's of a schema: a chain of some 4 000 overflows llguidance's stack."""

_NAMING = {"type", "$ref"}
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRINGS = ("minLength", "maxLength", "pattern", "format")


def normalized(schema: Any, lenient: bool = False) -> Any:
    """The schema in the compiled form: a dict or a bool, that accepts no value that it refuses.

    lenient: leave out what cannot be held. Raises InvalidRequest, which names keyword and place.
    """
    return Normalizer(schema, lenient).whole()


class Normalizer:
    """Of one document."""

    def __init__(self, document: Any, lenient: bool = False, wide: bool = False) -> None:
        """wide: leave objects open, and numbers unbounded, as the schema says."""
        self._references = References(document)
        self._lenient = lenient
        self._wide = wide
        self._given: Normalizer | None = None
        self._begin()

    def _begin(self) -> None:
        self._together, self._comparison = Together(self.find), Comparison(self._followed)
        self._count = 0
        # The definitions' names by pointer and whether they are closed.
        self._names: dict[tuple[str, bool], str] = {}
        self._waiting: list[tuple[str, Place, bool]] = []
        self._defs: dict[str, Any] = {}

    @property
    def root(self) -> Place:
        """The whole document."""
        return self._references.root

    def find(self, reference: str, base: str) -> Place | None:
        """What a $ref names; None: nothing in the document."""
        return self._references.find(reference, base)

    def whole(self, place: Place | None = None) -> Any:
        """This part of the document, or all of it, with the definitions that it uses."""
        place = place or self.root
        self._begin()
        self._names[place.pointer, True] = "#"
        found = self._schema(place, True, MAX_DEPTH)
        while self._waiting:
            name, target, closed = self._waiting.pop()
            self._defs[name] = self._schema(target, closed, MAX_DEPTH)
        if isinstance(found, dict) and self._defs:
            found = {**found, "$defs": {name: self._defs[name] for name in sorted(self._defs)}}
        return found

    # One schema.

    def _schema(self, place: Place, closed: bool, depth: int) -> Any:
        schema = place.value
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            self._refuse("a schema", place, "an object, true or false")
            return True
        if depth == 0:
            raise InvalidRequest("json_schema", "a schema", f"at most {MAX_DEPTH} within another")
        given = {
            keyword: value
            for keyword, value in schema.items()
            if value is not None or keyword == "const"
        }
        self._check_words(given, place)
        made: dict[str, Any] = {}
        self._types(given, made, place)
        together = self._together.names(given, place) if closed else None
        for keyword in given:
            if keyword in ASSERTIONS:
                self._assertion(keyword, given, made, place)
            elif keyword in _IN_PLACE:
                inner = closed and together is None
                self._options(keyword, given, made, place, inner, depth)
            elif keyword == "$ref":
                self._reference(given, made, place, closed and together is None)
            elif keyword == "properties":
                self._properties(given, made, place, depth)
            elif keyword == "patternProperties":
                made[keyword] = self._named(keyword, given, place, depth)
            elif keyword == "additionalProperties":
                made[keyword] = self._schema(place.at(keyword), True, depth - 1)
        self._items(given, made, place, depth)
        if "propertyNames" in given and "object" in kinds_of(given):
            rule = self._schema(place.at("propertyNames"), True, depth - 1)
            if not with_rule(self._followed(rule), made):
                self._refuse("propertyNames", place, instead("propertyNames"))
        if not evaluated(given, made, together):
            self._refuse("unevaluatedProperties", place, instead("unevaluatedProperties"))
        if closed and not self._wide and "object" in kinds_of(given):
            close(made, together)
        if not self._wide and miscounted(made):
            self._refuse("minProperties", place, COUNTED)
            del made["minProperties"]
        return made

    def _check_words(self, given: Mapping[str, Any], place: Place) -> None:
        """Refuse what asserts something and cannot be held."""
        for keyword, value in given.items():
            if keyword in UNHELD:
                if not asserts_nothing(keyword, value, given):
                    self._refuse(keyword, place, instead(keyword))
            elif keyword == "uniqueItems":
                most = given.get("maxItems", 2)
                one = is_number(most) and most <= 1
                if value is True and "array" in kinds_of(given) and not one:
                    self._refuse(keyword, place, instead(keyword))
            elif keyword not in _SEEN and (known := misspelt(keyword)) is not None:
                self._refuse(keyword, place, f"{known}, or a word that is not so near to it")

    def _types(self, given: Mapping[str, Any], made: dict[str, Any], place: Place) -> None:
        if "type" not in given or given["type"] == "any":
            return
        kinds = given["type"] if isinstance(given["type"], list) else [given["type"]]
        kinds = [kind.lower() if isinstance(kind, str) else kind for kind in kinds]
        if not kinds or not all(kind in TYPES for kind in kinds):
            self._refuse("type", place, f"one or more of {', '.join(TYPES)}")
            return
        if given.get("nullable") is True and "null" not in kinds:
            kinds.append("null")
        kinds = list(dict.fromkeys(kinds))
        made["type"] = kinds[0] if len(kinds) == 1 else kinds

    def _assertion(
        self, keyword: str, given: Mapping[str, Any], made: dict[str, Any], place: Place
    ) -> None:
        value = given[keyword]
        if keyword in _NUMBERS and not kinds_of(given) & {"number", "integer"}:
            return
        if keyword in _STRINGS and "string" not in kinds_of(given):
            return
        if keyword == "required" and isinstance(value, bool):
            return  # draft 3: it concerns the object around this schema
        if keyword.startswith("exclusive") and isinstance(value, bool):  # draft 4
            bound = keyword.removeprefix("exclusive").lower()
            if value and bound in given and is_number(given[bound]):
                made[keyword] = given[bound]
                return
            if not value:
                return
        check, expected = ASSERTIONS[keyword]
        if not check(value):
            self._refuse(keyword, place, expected)
        elif keyword == "format":
            self._format(value, made)
        elif keyword == "pattern" and "pattern" in made:  # of a format
            made["allOf"] = [*made.get("allOf", ()), {"pattern": value}]
        elif keyword in COUNTS:
            limit = made.get(keyword, value) if keyword == "maxLength" else value
            made[keyword] = int(min(value, limit))
        elif self._wide:
            made[keyword] = value
        elif keyword in ("minimum", "maximum") and "number" in made.get("type", ()):
            made[keyword] = _inside(keyword, value)
        else:
            made[keyword] = list(dict.fromkeys(value)) if keyword == "required" else value

    def _format(self, name: str, made: dict[str, Any]) -> None:
        pattern = pattern_of(name)
        if pattern is None:
            return
        if "pattern" in made:
            made["allOf"] = [*made.get("allOf", ()), {"pattern": made["pattern"]}]
        made["pattern"] = pattern
        if name in LENGTHS:
            made["maxLength"] = min(LENGTHS[name], made.get("maxLength", LENGTHS[name]))

    def _options(
        self,
        keyword: str,
        given: Mapping[str, Any],
        made: dict[str, Any],
        place: Place,
        closed: bool,
        depth: int,
    ) -> None:
        if not isinstance(given[keyword], list):
            self._refuse(keyword, place, "a list of schemas")
            return
        options = [
            self._schema(place.at(keyword, index), closed, depth - 1)
            for index in range(len(given[keyword]))
        ]
        if keyword == "oneOf":
            options = exclusive(options)
            self._discriminate(options, given.get("discriminator"))
            if "type" in made:
                options = [_typed(option, made["type"]) for option in options]
            if not self._wide and not self._comparison.all_disjoint(options, self._as_given(place)):
                self._refuse("oneOf", place, "schemas that have no value in common, or anyOf")
            keyword = "anyOf"
        if keyword == "allOf":
            made[keyword] = [*made.get(keyword, ()), *options]
        elif keyword in made:  # both anyOf and a oneOf that became one
            made["allOf"] = [*made.get("allOf", ()), {keyword: options}]
        else:
            made[keyword] = options

    def _as_given(self, place: Place) -> list[Any]:
        """The options of oneOf, without what is added to them."""
        if self._given is None:
            self._given = Normalizer(self.root.value, lenient=True, wide=True)
        return self._given.options(place)

    def options(self, place: Place) -> list[Any]:
        """The options of the oneOf of this schema."""
        number = len(place.value["oneOf"])
        return [self._schema(place.at("oneOf", n), True, MAX_DEPTH) for n in range(number)]

    def _discriminate(self, options: list[Any], told: Any) -> None:
        """Require the property that OpenAPI's `discriminator` names: options differ in it."""
        name = told.get("propertyName") if isinstance(told, dict) else None
        for option in map(self._followed, options) if name is not None else ():
            if isinstance(option, dict) and name in option.get("properties", ()):
                option["required"] = list(dict.fromkeys([*option.get("required", ()), name]))

    def _reference(
        self, given: Mapping[str, Any], made: dict[str, Any], place: Place, closed: bool
    ) -> None:
        reference = given["$ref"]
        target = self.find(reference, place.base) if isinstance(reference, str) else None
        if target is None:
            self._refuse("$ref", place, 'a reference within the schema ("#/…")')
            return
        self._count += 1
        if self._count > MAX_REFERENCES:
            raise InvalidRequest("json_schema", "$ref", f"at most {MAX_REFERENCES} references")
        made["$ref"] = self._named_reference(target, closed)

    def _named_reference(self, target: Place, closed: bool) -> str:
        key = target.pointer, closed
        if key not in self._names:
            stem = re.sub(r"[^A-Za-z0-9_.-]", "_", target.pointer.rpartition("/")[2])[:40] or "root"
            name, number = stem, 1
            while name in self._names.values():
                number += 1
                name = f"{stem}-{number}"
            self._names[key] = name
            self._waiting.append((name, target, closed))
        name = self._names[key]
        if self._wide:
            return f"#/$given/{name}"
        return name if name == "#" else f"#/$defs/{name}"

    def _followed(self, schema: Any) -> Any:
        """The schema, or what it refers to if it says nothing else."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or set(schema) != {"$ref"}:
                break
            schema = self._resolved(schema["$ref"])
        return schema

    def _resolved(self, reference: str) -> Any:
        """What a reference of the result names, for comparisons; True until it is written."""
        if self._given is not None and reference.startswith("#/$given/"):
            return self._given._resolved(reference)
        if reference.endswith("#"):
            return True
        name = reference.rpartition("/")[2]
        for number, (waiting, target, closed) in enumerate(self._waiting):
            if waiting == name:
                del self._waiting[number]
                self._defs[name] = True  # while it is being written
                self._defs[name] = self._schema(target, closed, MAX_DEPTH)
                break
        return self._defs.get(name, True)

    # Objects.

    def _named(
        self, keyword: str, given: Mapping[str, Any], place: Place, depth: int
    ) -> dict[str, Any]:
        value = given[keyword]
        if not isinstance(value, dict):
            self._refuse(keyword, place, "schemas by name")
            return {}
        if len(value) > MAX_PROPERTIES:
            found = f"{len(value)} {keyword}"
            raise InvalidRequest("json_schema", found, f"at most {MAX_PROPERTIES}")
        inner = place.at(keyword)
        return {name: self._schema(inner.at(name), True, depth - 1) for name in value}

    def _properties(
        self, given: Mapping[str, Any], made: dict[str, Any], place: Place, depth: int
    ) -> None:
        made["properties"] = self._named("properties", given, place, depth)
        needed = [
            name
            for name in made["properties"]
            if isinstance(given["properties"][name], dict)
            and given["properties"][name].get("required") is True
        ]
        if needed:  # draft 3
            made["required"] = needed

    # Arrays.

    def _items(
        self, given: Mapping[str, Any], made: dict[str, Any], place: Place, depth: int
    ) -> None:
        first, rest = "prefixItems", "items"
        if isinstance(given.get("items"), list):  # before draft 2020-12
            first, rest = "items", "additionalItems"
        if first in given:
            if isinstance(given[first], list):
                made["prefixItems"] = [
                    self._schema(place.at(first, index), True, depth - 1)
                    for index in range(len(given[first]))
                ]
            else:
                self._refuse(first, place, "a list of schemas")
        if rest in given:
            made["items"] = self._schema(place.at(rest), True, depth - 1)

    def _refuse(self, keyword: str, place: Place, expected: str) -> None:
        """Raise InvalidRequest, unless what cannot be held is left out."""
        if self._lenient:
            return
        value = place.value.get(keyword) if isinstance(place.value, dict) else place.value
        raise refusal(keyword, value, place.pointer, expected)


_SEEN = {
    *ASSERTIONS, *UNHELD, *_IN_PLACE, "$ref", "type", "properties", "patternProperties",
    "additionalProperties", "propertyNames", "items", "prefixItems", "additionalItems", "if",
    "uniqueItems", "nullable", "unevaluatedProperties", "minContains", "maxContains", "$defs",
    "definitions",
}  # fmt: skip


def _typed(option: Any, kinds: Any) -> Any:
    """An option with the type of the schema around it, if it has none."""
    return (
        {"type": kinds, **option}
        if isinstance(option, dict) and not _NAMING & option.keys()
        else option
    )


def _inside(keyword: str, value: float) -> float:
    """A bound of a number that is not beyond what is read exactly, if it can move inward."""
    if keyword == "maximum" and value > EXACT:
        return EXACT
    return -EXACT if keyword == "minimum" and value < -EXACT else value
