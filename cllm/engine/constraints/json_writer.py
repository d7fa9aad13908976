"""Writes a JSON schema with numbers that llguidance would change as a grammar around them.

The path from the root to such a number becomes Lark: objects, arrays, alternatives and
references; the number becomes an expression or a literal. All other parts stay JSON schemas.
A keyword that has no such form is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from cllm.engine.constraints.json_exact import (
    BEYOND,
    BOUNDS,
    DEFINED,
    MANY,
    NAMED,
    ONE,
    Schema,
    needs_writing,
    target,
    targets,
)
from cllm.engine.constraints.json_numbers import integers, is_exact
from cllm.engine.errors import InvalidRequest

MAX_SIZE = 2**20
"""Maximum characters written: each part that stays JSON repeats the definitions it needs."""

_NUMERIC = {"type", "multipleOf", *BOUNDS}
_KEY = r'/"([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])*"/'  # of a property without a schema
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


class Writer:
    """Writes one schema that has passed normalized() and with_exact_bounds()."""

    def __init__(self, root: Schema, layout: Schema) -> None:
        self._root = {k: v for k, v in root.items() if k not in DEFINED}
        self._remarks = {*DEFINED}
        self._layout = layout
        self._rules: list[str] = []
        self._size = 0
        self._references: dict[str, str] = {}
        self._defined = {
            f"#/{keyword}/{name}": inner
            for keyword in DEFINED
            for name, inner in root.get(keyword, {}).items()
        }
        self._written = self._to_write()

    def expression(self) -> str:
        """The right side of a rule. Raises InvalidRequest."""
        self._references["#"] = "start"
        start = self._node(self._root)
        return "%lark {\n" + "\n".join([f"start: {start}", *self._rules]) + "\n}"

    def _to_write(self) -> set[str]:
        """The references to schemas with such a number, directly or through another reference."""
        schemas = {**self._defined, "#": self._root}
        found = {name for name, schema in schemas.items() if needs_writing(schema)}
        uses = {name: targets(schema) for name, schema in schemas.items()}
        while more := {name for name, used in uses.items() if used & found} - found:
            found |= more
        return found

    def _is_written(self, schema: Any) -> bool:
        return needs_writing(schema) or bool(targets(schema) & self._written)

    def _node(self, schema: Any) -> str:
        if not self._is_written(schema):
            return self._leaf(schema)
        used = {keyword for keyword in schema if keyword not in self._remarks}
        if "$ref" in used:
            self._only(used, {"$ref"})
            return self._reference(schema["$ref"])
        if "allOf" in used:
            return self._node(self._merged(schema, used))
        if "anyOf" in used:
            self._only(used, {"anyOf"})
            return self._rule(" | ".join(map(self._node, schema["anyOf"])))
        if used & {"const", "enum"}:
            self._only(used, {"const", "enum", "type"})
            return self._values(schema)
        return self._typed(schema, used)

    def _leaf(self, schema: Any) -> str:
        inner = dict(schema) if isinstance(schema, dict) else {} if schema else {"enum": []}
        waiting, needed = targets(inner), set[str]()
        while waiting:
            name = waiting.pop()
            if name not in self._defined:
                raise self._refused(f"$ref: {name}", "references to $defs alone")
            needed.add(name)
            waiting |= targets(self._defined[name]) - needed
        for keyword in DEFINED:
            inner.pop(keyword, None)
        for name in sorted(needed):
            _, keyword, defined = name.split("/", 2)
            inner.setdefault(keyword, {})[defined] = self._defined[name]
        return self._rule(f"%json {json.dumps({**inner, 'x-guidance': self._layout})}")

    def _reference(self, name: str) -> str:
        name = target(name)
        if name not in self._references:
            if name not in self._defined:
                raise self._refused(f"$ref: {name}", "references to $defs or #")
            rule = self._references[name] = self._new()
            self._rules.append(f"{rule}: {self._node(self._defined[name])}")
        return self._references[name]

    def _merged(self, schema: Schema, used: set[str]) -> Schema:
        """The schema without allOf: a single part, or numeric bounds merged."""
        parts = schema["allOf"]
        if used == {"allOf"} and len(parts) == 1:
            return parts[0] if isinstance(parts[0], dict) else {}
        own = {keyword: schema[keyword] for keyword in used - {"allOf"}}
        merged: dict[str, Any] = {}
        for part in [own, *parts]:
            if not isinstance(part, dict) or set(part) - self._remarks - _NUMERIC:
                raise self._refused("allOf", f"bounds alone in it, around a number {BEYOND}")
            for keyword in set(part) & _NUMERIC:
                value = part[keyword]
                if keyword not in merged:
                    merged[keyword] = value
                elif keyword == "type":
                    merged["type"] = _common(_types(merged), _types(part))
                elif keyword.endswith("inimum"):
                    merged[keyword] = max(value, merged[keyword])
                elif keyword.endswith("aximum"):
                    merged[keyword] = min(value, merged[keyword])
                elif merged[keyword] != value:
                    raise self._refused("multipleOf", f"one of them, around a number {BEYOND}")
        return merged

    def _values(self, schema: Schema) -> str:
        values = schema.get("enum", [schema.get("const")])
        if "enum" in schema and "const" in schema:
            raise self._refused("const", "no enum next to it")
        allowed = _types(schema) if "type" in schema else None
        texts = [
            _literal(json.dumps(value, ensure_ascii=False))
            for value in values
            if allowed is None or any(_is_a(value, kind) for kind in allowed)
        ]
        if not texts:
            raise self._refused("enum", "a value of the type next to it")
        return self._rule(" | ".join(texts))

    def _typed(self, schema: Schema, used: set[str]) -> str:
        options = []
        for kind in _types(schema):
            if kind == "integer":
                options.append(self._integer(schema))
            elif kind == "object":
                options.append(self._object(schema, used))
            elif kind == "array":
                options.append(self._array(schema, used))
            elif kind == "number" and any(k in schema and not is_exact(schema[k]) for k in BOUNDS):
                raise self._refused("type: number", f"integer, where a bound is {BEYOND}")
            else:
                others = {k: v for k, v in schema.items() if not self._is_written({k: v})}
                options.append(self._leaf({**others, "type": kind}))
        if not options:
            found = ", ".join(sorted(used & {*BOUNDS, *NAMED, *ONE, *MANY})) or "a schema"
            raise self._refused(found, "a type next to it")
        return self._rule(" | ".join(options))

    def _integer(self, schema: Schema) -> str:
        low = high = None
        for keyword in BOUNDS:
            if keyword not in schema:
                continue
            value = schema[keyword]
            exclusive = keyword.startswith("ex")
            if keyword.endswith("inimum"):
                bound = math.floor(value) + 1 if exclusive else math.ceil(value)
                low = bound if low is None else max(low, bound)
            else:
                bound = math.ceil(value) - 1 if exclusive else math.floor(value)
                high = bound if high is None else min(high, bound)
        if all(bound is None or is_exact(bound) for bound in (low, high)):
            bounds = {"type": "integer", "minimum": low, "maximum": high}
            if "multipleOf" in schema:
                bounds["multipleOf"] = schema["multipleOf"]
            return self._leaf({k: v for k, v in bounds.items() if v is not None})
        if schema.get("multipleOf", 1) != 1:
            raise self._refused("multipleOf", f"none next to a bound {BEYOND}")
        if low is not None and high is not None and low > high:
            raise self._refused(f"minimum: {low}", f"at most the maximum, {high}")
        return f"/{integers(low, high)}/"

    def _object(self, schema: Schema, used: set[str]) -> str:
        for keyword in ("patternProperties", "minProperties", "maxProperties"):
            if keyword in used:
                raise self._refused(keyword, f"none around a number {BEYOND}")
        properties, required = schema.get("properties", {}), schema.get("required", [])
        extra = schema.get("additionalProperties", True)
        names = [*properties, *(name for name in required if name not in properties)]
        items = []
        for name in dict.fromkeys(names):
            inner = properties.get(name, extra)
            if inner is False and name not in required:
                continue
            key = _literal(json.dumps(name, ensure_ascii=False) + ": ")
            items.append((f"{key} {self._node(inner)}", name in required))
        more = self._more(extra, list(dict.fromkeys(names)))
        # `late`: what may follow after a first property; `early`: before it.
        late = self._rule(f'(", " {more})*' if more else '""')
        early = self._rule(f"({more} {late})?" if more else '""')
        for item, needed in reversed(items):
            one = self._rule(item)
            early = self._rule(f"{one} {late}" if needed else f"({one} {late} | {early})")
            late = self._rule(f'", " {one} {late}' if needed else f'(", " {one})? {late}')
        return self._rule(f'"{{" {early} "}}"')

    def _more(self, schema: Any, taken: list[str]) -> str:
        """A property without a schema of its own; empty if none is allowed."""
        if schema is False:
            return ""
        key = f"KEY{len(self._rules)}"
        names = " | ".join(_literal(json.dumps(name, ensure_ascii=False)) for name in taken)
        self._rules.append(f"{key}: {_KEY}" + (f" & ~({names})" if names else ""))
        return self._rule(f'{key} ": " {self._node(schema)}')

    def _array(self, schema: Schema, used: set[str]) -> str:
        items = schema.get("items", True)
        if isinstance(items, list) or "additionalItems" in used:
            raise self._refused("items", f"prefixItems, around a number {BEYOND}")
        first = [self._node(inner) for inner in schema.get("prefixItems", [])]
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if items is False:
            most = min(len(first), len(first) if most is None else most)
        if most is not None and most < least:
            raise self._refused(f"minItems: {least}", f"at most {most}")
        first = first[:most]
        begin, rest = max(0, least - len(first)), None if most is None else most - len(first)
        tail = ""
        if rest != 0:
            each = self._node(items)
            if first:
                tail = self._rule(f'(", " {each}){{{begin},{"" if rest is None else rest}}}')
            else:
                upper = "" if rest is None else rest - 1
                tail = f'{each} (", " {each}){{{max(0, begin - 1)},{upper}}}'
                tail = self._rule(tail if begin else f"({tail})?")
        for number in range(len(first) - 1, -1, -1):
            one = f"{first[number]} {tail}" if not number else f'", " {first[number]} {tail}'
            tail = self._rule(one if number < least else f"({one})?")
        return self._rule(f'"[" {tail} "]"')

    def _only(self, used: set[str], allowed: set[str]) -> None:
        added = {"type", "additionalProperties"}  # perhaps not by the client
        for keyword in sorted(used - allowed, key=lambda name: (name in added, name)):
            others = ", ".join(sorted(used & allowed))
            raise self._refused(keyword, f"no {keyword} next to {others} around a number {BEYOND}")

    def _new(self) -> str:
        self._rules.append("")
        return f"x{len(self._rules)}"

    def _rule(self, body: str) -> str:
        self._size += len(body)
        if self._size > MAX_SIZE:
            found = "a schema with its references"
            raise self._refused(found, f"less of it around numbers {BEYOND}")
        name = self._new()
        self._rules[-1] = f"{name}: {body}"
        return name

    @staticmethod
    def _refused(found: str, expected: str) -> InvalidRequest:
        return InvalidRequest("json_schema", found, expected)


def _types(schema: Schema) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _common(some: list[str], others: list[str]) -> list[str]:
    both = [kind for kind in some if kind in others]
    for one, other in ((some, others), (others, some)):
        if "integer" in one and "number" in other and "integer" not in both:
            both.append("integer")
    return both


def _is_a(value: Any, kind: str) -> bool:
    if kind in _TYPES:
        return isinstance(value, _TYPES[kind])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return kind == "number" or (kind == "integer" and value == math.floor(value))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
