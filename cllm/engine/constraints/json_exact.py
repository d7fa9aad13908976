"""JSON schemas with numbers that llguidance would change, written as a grammar around them.

The path from the root to such a number becomes Lark: objects, arrays, alternatives and references;
the number becomes an expression or a literal. Every other part stays a JSON schema.
A keyword without such a form is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from cllm.engine.constraints.json_numbers import EXACT, MAX_DIGITS, integers, inward, is_exact
from cllm.engine.errors import InvalidRequest

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
ONE = ("items", "additionalItems", "additionalProperties")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
_NUMERIC = {"type", "multipleOf", *BOUNDS}
MAX_SIZE = 2**20
"""Characters of what is written: every part that is not has the definitions that it needs."""

_DEFINED = ("$defs", "definitions")
_KEY = r'/"([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])*"/'  # of a property without a schema
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_BEYOND = f"beyond {EXACT} (2^53)"

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
    return changed


def needs_writing(schema: Any) -> bool:
    """Whether llguidance would change a number of this schema, whose bounds are exact."""
    return any(not is_exact(number) for part in _parts(schema) for number in _numbers_of(part))


def _bound(keyword: str, value: float) -> float:
    if isinstance(value, int):
        if abs(value) >= 10**MAX_DIGITS:
            found = f"{keyword}: an integer of more than {MAX_DIGITS} digits"
            raise InvalidRequest("json_schema", found, f"at most {MAX_DIGITS} digits")
        return value
    if abs(value) > EXACT:  # also infinities
        expected = f"an integer written without a point or exponent, or no bound {_BEYOND}"
        raise InvalidRequest("json_schema", f"{keyword}: {value!r}", expected)
    if value.is_integer():
        return int(value)
    moved = inward(value, upper=keyword.endswith("aximum"))
    if moved is None:
        raise InvalidRequest("json_schema", f"{keyword}: {value!r}", "a number not so close to 0")
    return moved


def _parts(schema: Any) -> Iterator[Schema]:
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


class Writer:
    """Writes one schema that has passed check_schema() and with_exact_bounds()."""

    def __init__(self, root: Schema, remarks: tuple[str, ...], layout: Schema) -> None:
        self._root = {k: v for k, v in root.items() if k not in _DEFINED}
        self._remarks = {*remarks, *_DEFINED}
        self._layout = layout
        self._rules: list[str] = []
        self._size = 0
        self._references: dict[str, str] = {}
        self._defined = {
            f"#/{keyword}/{name}": inner
            for keyword in _DEFINED
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
        uses = {name: _targets(schema) for name, schema in schemas.items()}
        while more := {name for name, used in uses.items() if used & found} - found:
            found |= more
        return found

    def _is_written(self, schema: Any) -> bool:
        return needs_writing(schema) or bool(_targets(schema) & self._written)

    def _node(self, schema: Any) -> str:
        if not self._is_written(schema):
            return self._leaf(schema)
        used = {keyword for keyword in schema if keyword not in self._remarks}
        if "$ref" in used:
            self._only(used, {"$ref"})
            return self._reference(schema["$ref"])
        if "allOf" in used:
            return self._node(self._merged(schema, used))
        for keyword in ("anyOf", "oneOf"):
            if keyword in used:
                self._only(used, {keyword})
                if keyword == "oneOf":
                    self._check_disjoint(schema[keyword])
                return self._rule(" | ".join(map(self._node, schema[keyword])))
        if used & {"const", "enum"}:
            self._only(used, {"const", "enum", "type"})
            return self._values(schema)
        return self._typed(schema, used)

    def _leaf(self, schema: Any) -> str:
        inner = dict(schema) if isinstance(schema, dict) else {} if schema else {"enum": []}
        waiting, needed = _targets(inner), set[str]()
        while waiting:
            name = waiting.pop()
            if name not in self._defined:
                raise self._refused(f"$ref: {name}", "references to $defs alone")
            needed.add(name)
            waiting |= _targets(self._defined[name]) - needed
        for keyword in _DEFINED:
            inner.pop(keyword, None)
        for name in sorted(needed):
            _, keyword, defined = name.split("/", 2)
            inner.setdefault(keyword, {})[defined] = self._defined[name]
        return self._rule(f"%json {json.dumps({**inner, 'x-guidance': self._layout})}")

    def _reference(self, name: str) -> str:
        name = _target(name)
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
                raise self._refused("allOf", f"bounds alone in it, around a number {_BEYOND}")
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
                    raise self._refused("multipleOf", f"one of them, around a number {_BEYOND}")
        return merged

    def _check_disjoint(self, options: list[Any]) -> None:
        seen: set[str] = set()
        for option in options:
            kinds = set(_types(option)) if isinstance(option, dict) else set()
            if "number" in kinds:
                kinds.add("integer")
            if not kinds or kinds & seen:
                raise self._refused("oneOf", "options of different types, or anyOf")
            seen |= kinds

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
                raise self._refused("type: number", f"integer, where a bound is {_BEYOND}")
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
            raise self._refused("multipleOf", f"none next to a bound {_BEYOND}")
        if low is not None and high is not None and low > high:
            raise self._refused(f"minimum: {low}", f"at most the maximum, {high}")
        return f"/{integers(low, high)}/"

    def _object(self, schema: Schema, used: set[str]) -> str:
        for keyword in ("patternProperties", "minProperties", "maxProperties"):
            if keyword in used:
                raise self._refused(keyword, f"none around a number {_BEYOND}")
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
            raise self._refused("items", f"prefixItems, around a number {_BEYOND}")
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
        for keyword in sorted(used - allowed):
            beside = ", ".join(sorted(used & allowed))
            raise self._refused(keyword, f"no {keyword} next to {beside} around a number {_BEYOND}")

    def _new(self) -> str:
        self._rules.append("")
        return f"x{len(self._rules)}"

    def _rule(self, body: str) -> str:
        self._size += len(body)
        if self._size > MAX_SIZE:
            found = "a schema with its references"
            raise self._refused(found, f"less of it around numbers {_BEYOND}")
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


def _target(reference: str) -> str:
    return unquote(reference).replace("~1", "/").replace("~0", "~")


def _targets(schema: Any) -> set[str]:
    return {_target(part["$ref"]) for part in _parts(schema) if "$ref" in part}
