"""Numbers in schemas are enforced exactly, or refused by name."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from cllm.engine import Constraint, Engine, InvalidRequest
from cllm.engine.constraints.json_numbers import integers, is_exact
from tests.engine.constraints.test_constraints import held
from tests.engine.engine_helpers import finished

Schema = dict[str, Any]

EDGES = [
    sign * (base + step)
    for base in (0, 9, 10, 99, 1000, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30)
    for sign in (1, -1)
    for step in (-2, -1, 0, 1, 2)
]
INT64: Schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
UINT64: Schema = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
INT32: Schema = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}


def admits(engine: Engine, schema: Any, text: str) -> bool:
    """Whether a model could write the text, and end there."""
    guide = engine._grammars.guide(Constraint("json_schema", schema))
    for token in engine.tokenize(text, add_special=False):
        if guide.ended or guide.forbidden()[token]:
            return False
        guide.accept(token)
    eos = engine.info().eos_token
    return bool(guide.ended or not guide.forbidden()[eos])


def walked(engine: Engine, schema: Any, rng: random.Random, most: int = 60) -> str | None:
    """A text of tokens chosen at random; None if it did not end."""
    guide = engine._grammars.guide(Constraint("json_schema", schema))
    ends, text = {*engine._vocab.eog_tokens().tolist()}, b""
    for _ in range(most):
        if guide.ended:
            return text.decode()
        allowed = {*np.flatnonzero(~guide.forbidden()).tolist()}
        if allowed & ends and (allowed <= ends or rng.random() < 0.2):
            return text.decode()
        token = rng.choice(sorted(allowed - ends))
        guide.accept(token)
        text += engine.piece(token)
    return None


def bounded(rng: random.Random) -> Schema:
    """An integer with bounds of which some are large, however they may be written."""
    schema: Schema = {"type": rng.choice(["integer", ["integer", "null"], ["null", "integer"]])}
    low, high = sorted(rng.choices(EDGES, k=2))
    if rng.random() < 0.3:
        high = low + rng.randint(0, 3)
    bounds: Schema = {}
    if rng.random() < 0.8:
        bounds[rng.choice(["minimum", "exclusiveMinimum"])] = rng.choice([low, float(low), low])
    if rng.random() < 0.8:
        bounds[rng.choice(["maximum", "exclusiveMaximum"])] = rng.choice([high, float(high), high])
    if rng.random() < 0.2:
        bounds["multipleOf"] = rng.choice([1, 3, 10])
    if rng.random() < 0.2:
        return {**schema, "allOf": [{key: value} for key, value in bounds.items()]}
    return {**schema, **bounds}


def is_valid(schema: Schema, value: int) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)  # Python compares exactly


@pytest.mark.parametrize("seed", range(6))
def test_integers_are_held_exactly_or_refused_by_name(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    refused = 0
    for _ in range(40):
        schema = bounded(rng)
        values = {*rng.sample(EDGES, 12), *edges_of(schema)}
        try:
            found = {value: admits(engine, schema, str(value)) for value in values}
        except InvalidRequest as error:
            refused += 1
            assert may_refuse(schema, str(error)), (schema, str(error))
            continue
        assert found == {value: is_valid(schema, value) for value in values}, schema
        for _ in range(3):
            text = walked(engine, schema, rng)
            assert text is None or text == "null" or is_valid(schema, int(text)), (schema, text)
    assert refused < 30


def edges_of(schema: Schema) -> set[int]:
    merged = {**schema, **{k: v for part in schema.get("allOf", []) for k, v in part.items()}}
    given = [int(value) for key, value in merged.items() if "imum" in key]
    return {value + step for value in given for step in (-1, 0, 1)}


def may_refuse(schema: Schema, error: str) -> bool:
    """Large floats, multipleOf next to large bounds, no integer at all."""
    merged = {**schema, **{k: v for part in schema.get("allOf", []) for k, v in part.items()}}
    bounds = [value for key, value in merged.items() if "imum" in key]
    if any(isinstance(value, float) and abs(value) > 2**53 for value in bounds):
        return "imum: " in error
    if "json_schema: multipleOf is" in error:
        return merged.get("multipleOf", 1) > 1 and any(abs(value) >= 2**53 for value in bounds)
    candidates = edges_of(schema) | set(range(-30, 30))
    multiple = merged.get("multipleOf", 1)
    candidates |= {value // multiple * multiple for value in candidates}
    return not any(is_valid(schema, value) for value in candidates)


@pytest.mark.parametrize("schema", [INT64, UINT64, INT32])
def test_the_ranges_that_generators_write_are_held(engine: Engine, schema: Schema) -> None:
    low, high = schema["minimum"], schema["maximum"]
    inside = {low, low + 1, -1, 0, 1, 10**9, 2**53 + 1, high - 1, high}
    for value in inside | {low - 1, high + 1, 10 * low - 1, 10 * high, -(10**25), 10**25}:
        assert admits(engine, schema, str(value)) == (low <= value <= high), value
    assert not admits(engine, schema, "007")
    assert not admits(engine, schema, "1.0")


@pytest.mark.parametrize("value", [2**53 + 1, 2**63, 2**64 - 1, 10**30 + 1, -(2**63) - 1])
def test_large_values_are_written_as_they_are(engine: Engine, value: int) -> None:
    for schema in ({"const": value}, {"enum": [value]}, {"const": [{"id": value}]}):
        text = finished(engine.submit("Hi", held("json_schema", schema))).text
        given = schema.get("const", value)
        assert text == json.dumps(given)
    among = {"type": ["integer", "string"], "enum": [value, "a", 1.5, None]}
    for text, expected in ((str(value), True), ('"a"', True), ("1.5", False), ("null", False)):
        assert admits(engine, among, text) is expected


def test_values_that_are_no_integers_are_never_others(engine: Engine) -> None:
    rng = random.Random(3)
    for _ in range(60):
        value = rng.choice([rng.random() * 10.0 ** rng.randint(-20, 20), rng.uniform(-1e15, 1e15)])
        text = walked(engine, {"const": value}, rng, 400)
        assert text is not None
        assert float(text) == value
    assert not all(is_exact(rng.random()) for _ in range(100)), "otherwise this has tested nothing"


def test_fractional_bounds_admit_nothing_outside(engine: Engine) -> None:
    rng = random.Random(4)
    for _ in range(30):
        low = rng.uniform(-100, 100)
        high = low + rng.random()
        schema = {"type": "number", "minimum": low, "maximum": high}
        for value in (low, high, math.nextafter(low, -math.inf), math.nextafter(high, math.inf)):
            if admits(engine, schema, repr(value)):
                assert low <= value <= high


TREE: Schema = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "id": UINT64,
                "name": {"$ref": "#/$defs/name"},
                "owner": {"anyOf": [{"$ref": "#/$defs/owner"}, {"type": "null"}]},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["id", "parts"],
            "additionalProperties": False,
        },
        "name": {"type": "string", "maxLength": 3},
        "owner": {"type": "array", "prefixItems": [INT64, True], "minItems": 1, "items": False},
    },
}
OPEN: Schema = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "n": INT64},
    "required": ["n", "m"],
    "additionalProperties": True,
}
INSIDE = [
    (TREE, {"id": 2**64 - 1, "parts": []}),
    (TREE, {"id": 0, "name": "abc", "owner": [-(2**63)], "parts": [{"id": 1, "parts": []}]}),
    (TREE, {"id": 0, "owner": [1, {"x": 0.5}], "parts": []}),
    (TREE, {"id": 0, "owner": None, "parts": []}),
    (TREE, {"id": 0, "owner": [], "parts": []}),
    (TREE, {"id": 0, "owner": [1, 2, 3], "parts": []}),
    (TREE, {"id": 2**64, "parts": []}),
    (TREE, {"id": 1, "name": "abcd", "parts": []}),
    (TREE, {"id": 1, "parts": [{"id": -1, "parts": []}]}),
    (TREE, {"id": 1, "parts": [{"id": 1, "parts": []}] * 3}),
    (TREE, {"id": 1, "parts": [], "more": 1}),
    (TREE, {"parts": []}),
    (OPEN, {"a": True, "n": 1, "m": None}),
    (OPEN, {"n": -(2**63), "m": 2, "another": {"b": [1]}, "x y": "ü"}),
    (OPEN, {"n": 2**63, "m": 2}),
    (OPEN, {"a": True, "n": 1}),
    ({"type": "object", "properties": {"n": INT64}}, {}),
    ({"type": "object", "properties": {"n": INT64, "m": INT64}}, {"m": 1}),
    (
        {"properties": {"n": INT64, "m": INT64}, "additionalProperties": True},
        {"n": 1, "z": "", "y": 1},
    ),
    ({"type": "object", "additionalProperties": UINT64}, {"a": 1, "b": 2**64 - 1}),
    ({"type": "object", "additionalProperties": UINT64}, {"a": -1}),
    ({"type": "array", "items": UINT64, "minItems": 2, "maxItems": 3}, [1]),
    ({"type": "array", "items": UINT64, "minItems": 2, "maxItems": 3}, [1, 2]),
    ({"type": "array", "items": UINT64, "minItems": 2, "maxItems": 3}, [1, 2, 3]),
    ({"type": "array", "items": UINT64, "minItems": 2, "maxItems": 3}, [1, 2, 3, 4]),
    ({"type": "array", "items": UINT64}, []),
    ({"oneOf": [UINT64, {"type": "null"}]}, None),
    ({"allOf": [{"$ref": "#/$defs/n"}], "$defs": {"n": UINT64}}, 2**64 - 1),
]


@pytest.mark.parametrize(("schema", "value"), INSIDE)
def test_what_stands_around_a_large_number_is_held_too(
    engine: Engine, schema: Schema, value: Any
) -> None:
    valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    text = json.dumps(value, ensure_ascii=False)
    assert admits(engine, schema, text) is valid
    inner = {key: part for key, part in schema.items() if key != "$defs"}
    outer = {"type": "array", "items": inner, "$defs": schema.get("$defs", {})}
    assert admits(engine, outer, f"[{text}]") is valid


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "minimum": 1e30}, "minimum: 1e+30"),
        ({"type": "number", "minimum": 5e-324}, "minimum: 5e-324"),
        ({"type": "integer", "maximum": float("inf")}, "maximum: inf"),
        ({"type": "integer", "maximum": 10**100}, "maximum: an integer of more than 100 digits"),
        ({"type": "number", "minimum": 2**63}, "type: number"),
        ({"minimum": 2**63}, "minimum"),
        ({"type": "integer", "minimum": 2**63, "multipleOf": 7}, "multipleOf"),
        ({"type": "integer", "minimum": 2**63, "maximum": 5}, "minimum: 9223372036854775808"),
        ({"patternProperties": {"^a": INT64}, "type": "object"}, "patternProperties"),
        ({"type": "object", "properties": {"a": INT64}, "minProperties": 1}, "minProperties"),
        ({"properties": {"a": INT64}, "anyOf": [{}], "type": "object"}, "properties"),
        ({"oneOf": [INT64, {"type": "number"}]}, "oneOf"),
        ({"allOf": [INT64, {"type": "string"}, {"pattern": "a"}]}, "allOf"),
        ({"enum": [2**60 + 1], "type": "string"}, "enum"),
        (
            {"type": "integer", "allOf": [{"multipleOf": n} for n in (9999, 9998, 9997)]},
            "multipleOf",
        ),
    ],
)
def test_a_number_that_cannot_be_held_is_named(engine: Engine, schema: Schema, named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.check_constraint(Constraint("json_schema", json.dumps(schema)))
    assert caught.value.field == "json_schema"
    assert named in str(caught.value)


def test_what_is_written_around_large_numbers_is_bounded(engine: Engine) -> None:
    words = {f"w{i}": {"const": "x" * 100} for i in range(100)}
    schema = {
        "type": "object",
        "properties": {"n": INT64, **{f"p{i}": {"$ref": "#/$defs/all"} for i in range(900)}},
        "$defs": {"all": {"type": "object", "properties": words}},
    }
    with pytest.raises(InvalidRequest, match="a schema with its references"):
        engine.check_constraint(Constraint("json_schema", schema))


def test_an_expression_for_integers_matches_just_those() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        low, high = sorted(rng.choices([*EDGES, *range(-120, 120)], k=2))
        ends = rng.choice([(low, high), (None, high), (low, None), (None, None)])
        expression = re.compile(integers(*ends))
        for value in {*rng.sample(EDGES, 20), low - 1, low, low + 1, high - 1, high, high + 1}:
            inside = (ends[0] is None or ends[0] <= value) and (ends[1] is None or value <= ends[1])
            assert bool(expression.fullmatch(str(value))) is inside, (ends, value)
