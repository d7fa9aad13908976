"""Schemas as people and libraries write them: what is accepted, its texts, what is named."""

from __future__ import annotations

import json
import random
import re
from datetime import date
from typing import Any

import jsonschema
import pytest

from cllm.engine import Constraint, Engine, InvalidRequest
from cllm.engine.constraints.constraint import relaxed
from cllm.engine.constraints.json_disjoint import Comparison
from cllm.engine.constraints.json_formats import FORMATS
from cllm.engine.constraints.json_normal import normalized
from tests.engine.constraints.test_constraint_numbers import admits
from tests.tools import fuzz_constraints, schema_corpus
from tests.tools.schema_sources import INSTALLED, python_types

Schema = Any

INTEGER = {"type": "integer"}
BOTH = {"a": INTEGER, "b": INTEGER}
PERSON = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}


def held(schema: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": {"x": {**schema, **more}}, "required": ["x"]}


# A schema, texts that it allows, texts that it does not.
FORMS: list[tuple[Schema, list[str], list[str]]] = [
    # Words that assert nothing.
    ({**INTEGER, "x-order": 1, "unit": "cm", "propertyOrdering": ["a"]}, ["1"], ['"a"']),
    ({**INTEGER, "$schema": "http://json-schema.org/schema#", "nullable": False}, ["1"], ["null"]),
    ({"type": "string", "format": "path", "xml": {}, "strict": True}, ['"a b"'], ["1"]),
    ({"type": "array", "items": INTEGER, "uniqueItems": False, "minItems": 1.0}, ["[1]"], ["[]"]),
    ({"type": "string", "maxLength": 2.0, "enum": None, "pattern": None}, ['"ab"'], ['"abc"']),
    ({**PERSON, "required": None, "additionalProperties": None}, ["{}"], ['{"b": 1}']),
    ({**INTEGER, "if": {"minimum": 1}, "dependentRequired": {}, "not": False}, ["0"], ["null"]),
    ({"type": "object", "x-guidance": {"whitespace_flexible": True}}, ["{}"], ["{ }"]),
    # Other spellings.
    ({"type": "STRING", "nullable": True}, ['"a"', "null"], ["1"]),
    ({"type": "integer", "minimum": 5, "exclusiveMinimum": True}, ["6"], ["5"]),
    ({"type": "any", "maxLength": 1}, ['"a"', "12"], ['"ab"']),
    ({"type": "object", "properties": {"a": {**INTEGER, "required": True}}}, ['{"a": 1}'], ["{}"]),
    ({"type": "array", "items": [INTEGER], "additionalItems": False}, ["[1]"], ["[1, 2]", '["a"]']),
    ({"$ref": "#/components/x", "components": {"x": INTEGER}}, ["1"], ['"a"']),
    ({"$ref": "#n", "$defs": {"any": {"$anchor": "n", **INTEGER}}}, ["1"], ['"a"']),
    ({"$id": "https://a.example/b", "$ref": "c", "$defs": {"x": {"$id": "c", **INTEGER}}}, ["1"],
     ['"a"']),
    ({"properties": {"a": INTEGER, "b": {"$ref": "#/properties/a"}}}, ['{"b": 1}'], ['{"b": ""}']),
    ({"type": "number", "maximum": 1.7976931348623157e308}, ["1.5"], ["1e999"]),
    ({"enum": [1e30, "a"]}, ["1e+30"], ["1000000000000000000000000000000"]),
    # Objects are closed, unless they say otherwise.
    (PERSON, ['{"a": 1}'], ['{"a": 1, "b": 2}', "{}"]),
    ({"properties": {"a": INTEGER}}, ["{}"], ['{"b": 2}', "5"]),
    ({**PERSON, "additionalProperties": True}, ['{"a": 1, "b": 2}'], ['{"b": 2}']),
    ({**PERSON, "additionalProperties": {}}, ['{"a": 1, "b": 2}'], []),
    ({"type": "object"}, ['{"a": 1}'], []),
    ({"type": "object", "required": ["a"]}, ['{"a": 1}', '{"a": 1, "b": 1}'], ["{}"]),
    ({**PERSON, "required": ["a", "c"]}, ['{"a": 1, "c": ""}'], ['{"a": 1, "b": 1}', '{"a": 1}']),
    ({"allOf": [PERSON, {"properties": {"b": INTEGER}}]}, ['{"a": 1, "b": 2}'],
     ['{"a": 1, "c": 2}']),
    ({"allOf": [{"$ref": "#/$defs/p"}], "properties": {"b": INTEGER}, "$defs": {"p": PERSON}},
     ['{"a": 1, "b": 2}'], ['{"a": 1, "c": 2}']),
    ({"anyOf": [PERSON, {"properties": {"b": INTEGER}}]}, ['{"a": 1}', '{"b": 1}'], ['{"c": 1}']),
    ({"properties": BOTH, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"b": 1}'],
     ["{}", '{"c": 1}']),
    ({"allOf": [{**PERSON, "additionalProperties": True}, {"properties": {"b": INTEGER}}]},
     ['{"a": 1, "c": 2}'], ['{"a": 1, "b": ""}']),
    ({**PERSON, "unevaluatedProperties": False}, ['{"a": 1}'], ['{"a": 1, "b": 1}']),
    ({"type": "object", "properties": {"$ref": INTEGER}}, ['{"$ref": 1}'], ['{"$ref": "a"}']),
    # A key cannot be spelled in another way.
    ({**PERSON, "additionalProperties": True}, [], ['{"a": 1, "\\u0061": ""}']),
    ({"patternProperties": {"^x": INTEGER}, "type": "object"}, ['{"x": 1, "y": ""}'],
     ['{"\\u0078": ""}']),
    # Names.
    ({"type": "object", "propertyNames": {"type": "string"}}, ['{"a": 1}'], []),
    ({"type": "object", "propertyNames": {"$ref": "#/$defs/e"}, "additionalProperties": INTEGER,
      "$defs": {"e": {"enum": ["a", "b"], "type": "string"}}}, ['{"b": 1}'],
     ['{"c": 1}', '{"a": ""}']),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, ['{"ab": 1}'], ['{"b": 1}']),
    ({"type": "object", "propertyNames": {"minLength": 2, "maxLength": 3}}, ['{"ab": 1}'],
     ['{"b": 1}']),
    # oneOf of what has nothing in common.
    ({"oneOf": [{"const": 1}, {"enum": [2, 3]}]}, ["1", "3"], ["4"]),
    ({"oneOf": [{**INTEGER, "maximum": 5}, {**INTEGER, "exclusiveMinimum": 5}]}, ["5", "6"],
     ["null"]),
    ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]},
     ['"2020-02-29"', '"2020-02-29T01:02:03Z"'], ['"2020"']),
    ({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
      "$defs": {"a": held({"const": "a"}), "b": held({"const": "b"})}}, ['{"x": "a"}'],
     ['{"x": "c"}']),
    ({"properties": BOTH, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"b": 1}'],
     ["{}", '{"a": 1, "b": 1}']),
    ({"oneOf": [{"properties": {"k": {"const": "a"}}}, {"properties": {"k": {"const": "b"}}}],
      "discriminator": {"propertyName": "k"}}, ['{"k": "a"}'], ["{}"]),
    # A format next to a pattern: both are held.
    ({"type": "string", "format": "date", "pattern": "^2"}, ['"2020-01-01"'],
     ['"1999-01-01"', '"2"']),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: json.dumps(form[0])[:60])
def test_a_form_is_held(engine: Engine, form: tuple[Schema, list[str], list[str]]) -> None:
    schema, inside, outside = form
    for text in inside:
        assert admits(engine, schema, text), text
    for text in outside:
        assert not admits(engine, schema, text), text


# A schema, the keyword and its place.
REFUSED: list[tuple[Schema, str, str]] = [
    (held({"type": "array", "uniqueItems": True}), "uniqueItems: true", "/properties/x"),
    (held({"not": {"type": "null"}}), "not: ", "/properties/x"),
    (held({"if": {}, "then": {"type": "null"}}), "then: ", "/properties/x"),
    (held({"type": "string", "minLength": "5"}), 'minLength: "5"', "/properties/x"),
    (held({"type": "string", "minLength": 1.5}), "minLength: 1.5", "/properties/x"),
    (held({"type": "object", "a/b~": 1, "minProperties": 2}), "minProperties: 2", "/properties/x"),
    (held({"type": "string", "maxLenght": 5}), "maxLength", "/properties/x"),
    (held({"type": "string", "max_length": 5}), "maxLength", "/properties/x"),
    (held({"$ref": "other.json"}), '$ref: "other.json"', "/properties/x"),
    (held({"anyOf": [{}, {"items": 5}]}), "a schema", "/properties/x/anyOf/1/items"),
    # What only the compiler finds.
    (held({"items": {"type": "string", "pattern": "(?=a)b"}}), "look-ahead", "/properties/x/items"),
    (held({"$ref": "#/$defs/s"}) | {"$defs": {"s": {"type": "string", "pattern": "("}}}, "regex",
     "/$defs/s"),
    (held({"type": "string", "minLength": 5, "maxLength": 3}), "minLength (5)", "/properties/x"),
    ({"properties": {"a/b": {"oneOf": [INTEGER, {"type": "number"}]}}}, "or anyOf",
     "/properties/a~1b"),
    (held({"patternProperties": {"a": {}, "b": {}}}), "not disjoint", "/properties/x"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "named", "place"), REFUSED)
def test_what_cannot_be_held_is_named_with_its_place(
    engine: Engine, schema: Schema, named: str, place: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.check_constraint(Constraint("json_schema", schema))
    message = str(caught.value)
    assert named in message
    assert message.endswith(f"(at {place})")
    assert "%json" not in message and "start:" not in message


def test_words_that_are_near_a_keyword_and_mean_something_else(engine: Engine) -> None:
    for word in ("title", "examples", "patternErrorMessage", "x-maxLenght", "enumNames", "order"):
        engine.check_constraint(Constraint("json_schema", {"type": "string", word: 5}))


def test_what_cannot_be_held_of_a_tool_is_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {
            "tags": {"type": "array", "items": INTEGER, "uniqueItems": True},
            "name": {"type": "string", "minLength": "5", "maxLength": 5},
            "odd": {"type": "text"},
            "far": {"$ref": "other.json"},
        },
        "not": {"required": ["x"]},
    }
    properties = {
        "tags": {"type": "array", "items": INTEGER},
        "name": {"type": "string", "maxLength": 5},
        "odd": {},
        "far": {},
    }
    found = relaxed(schema)
    assert found == {"type": "object", "properties": properties, "additionalProperties": False}
    assert relaxed(found) == found


DATES = ["2021-02-28", "2021-02-29", "2020-02-29", "2100-02-29", "2000-02-29", "2000-02-30",
         "1996-02-29", "0004-02-29", "0000-01-01", "2021-04-31", "2021-12-31", "2021-13-01",
         "2021-00-10", "2021-06-00", "9999-12-31", "1900-02-29"]  # fmt: skip


def matches(format: str, text: str) -> bool:
    return re.fullmatch(FORMATS[format], text) is not None


def test_a_date_is_one_of_the_calendar() -> None:
    for text in DATES:
        try:
            exists = date.fromisoformat(text) is not None
        except ValueError:
            exists = False
        assert matches("date", text) is exists, text
    for year in range(1, 2500):
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        assert matches("date", f"{year:04}-02-29") is leap, year


@pytest.mark.parametrize(
    ("format", "inside", "outside"),
    [
        ("time", ["23:59:59Z", "01:02:03.5+14:00"],
         ["24:00:00Z", "01:02:60Z", "01:02:03", "1:2:3Z"]),
        ("date-time", ["2020-01-01T00:00:00Z"], ["2020-01-01 00:00:00Z", "2020-01-01T00:00:00z"]),
        ("duration", ["P1D", "PT5M", "P1Y2M3DT4H", "P3W"], ["P", "PT", "1D", "P1W2D"]),
        ("email", ["a.b+c@d-e.org"], ["a", "a@", "@b.org", "a..b@c.org", "a b@c.org"]),
        ("hostname", ["a", "a-b.example", "1.a"], ["", "-a", "a-", "a..b", "a_b", "a" * 64]),
        ("ipv4", ["0.0.0.0", "255.1.20.3"], ["256.1.1.1", "01.1.1.1", "1.1.1", "1.1.1.1."]),
        ("ipv6", ["::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::ffff:1.2.3.4"],
         [":", ":::", "1:2:3", "1::2::3", "1:2:3:4:5:6:7:8::", "12345::"]),
        ("uuid", ["00000000-0000-0000-0000-000000000000"], ["0" * 32, "g" * 36]),
        ("uuid4", ["00000000-0000-4000-8000-000000000000"],
         ["00000000-0000-1000-8000-000000000000"]),
        ("uri", ["http://a/b?c#d", "mailto:a@b.c", "urn:x:y", "http://[::1]:80/"],
         ["a b", "/a", "http://a b", "1a:b", "http://a/%zz"]),
        ("uri-reference", ["/a", "../b?c", "", "#d", "http://a"], ["a b", "\\a", "%"]),
        ("json-pointer", ["", "/a/b~0~1"], ["a", "/~2"]),
    ],
)  # fmt: skip
def test_a_format_is_what_its_document_says(
    format: str, inside: list[str], outside: list[str]
) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for text in inside:
        assert matches(format, text), text
        assert checker.conforms(text, format), text
    for text in outside:
        assert not matches(format, text), text


def test_every_format_compiles(engine: Engine) -> None:
    for format in FORMATS:
        for limits in ({}, {"maxLength": 40}, {"minLength": 1, "maxLength": 2083}):
            schema = {"type": "string", "format": format, **limits}
            engine.check_constraint(Constraint("json_schema", schema))


def test_disjoint_is_only_what_surely_is() -> None:
    alike: list[list[Schema]] = [
        [INTEGER, {"type": "number"}],
        [{"const": 1}, {"const": 1.0}],
        [{"const": 1}, {"type": "number", "maximum": 1}],
        [{**INTEGER, "maximum": 5}, {**INTEGER, "minimum": 5}],
        [{"type": "string", "maxLength": 3}, {"type": "string", "minLength": 3}],
        [{"enum": ["a", "b"]}, {"type": ["string", "null"]}],
        [{"properties": {"k": {"const": 1}}}, {"properties": {"k": {"const": 2}}}],
        [PERSON, True],
        [{"type": "null"}, {"enum": [None]}],
    ]
    for options in alike:
        compiled = [normalized(option) for option in options]
        assert not Comparison(lambda schema: schema).all_disjoint(compiled, options)


def test_options_are_compared_as_they_are_given(engine: Engine) -> None:
    """Closed options have less in common than those of the client."""
    options = [{"properties": BOTH, "required": ["a"]}, {"properties": {"b": INTEGER}}]
    with pytest.raises(InvalidRequest, match="oneOf"):
        engine.check_constraint(Constraint("json_schema", {"type": "object", "oneOf": options}))
    options[1] = {"properties": {"b": INTEGER}, "required": ["b"]}
    with pytest.raises(InvalidRequest, match="oneOf"):
        engine.check_constraint(Constraint("json_schema", {"type": "object", "oneOf": options}))
    options[0] = PERSON
    assert admits(engine, {"type": "object", "oneOf": options}, '{"a": 1}')


def test_an_exclusive_bound_is_not_inside(engine: Engine) -> None:
    for low, high in ((0, 0.5), (0, 1e-7), (3, 3.25), (0, 1), (0, 2)):
        for more in ("maximum", "exclusiveMaximum"):
            above: Schema = {"type": "number", "exclusiveMinimum": low, more: high}
            assert not admits(engine, above, str(low))
            inside = high / 100 if low == 0 else low + 0.1
            assert admits(engine, above, f"{inside:.10f}".rstrip("0"))
        for more in ("minimum", "exclusiveMinimum"):
            below: Schema = {"type": "number", "exclusiveMaximum": -low, more: -high}
            assert not admits(engine, below, str(-low))
            assert not admits(engine, below, f"-{low}")


def test_references_that_name_each_other_end(engine: Engine) -> None:
    loop = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    for schema in (
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], **loop},
        {"type": "object", "propertyNames": {"$ref": "#/$defs/a"}, **loop},
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#"},
    ):
        with pytest.raises(InvalidRequest):
            engine.check_constraint(Constraint("json_schema", schema))


def tree(depth: int) -> Schema:
    return {"anyOf": [tree(depth - 1) for _ in range(4)]} if depth else PERSON


def test_schemas_that_multiply_are_refused() -> None:
    """Before the child: what is held of a tool's schema is found in the server."""
    many: Schema = {"allOf": [{"properties": {f"p{number}": {}}} for number in range(3000)]}
    clusters: Schema = {
        "properties": {
            f"q{number}": {"allOf": [{"$ref": "#/$defs/m"}], "properties": {}}
            for number in range(900)
        },
        "$defs": {"m": many},
    }
    with pytest.raises(InvalidRequest, match="describe one object together"):
        normalized(clusters)
    with pytest.raises(InvalidRequest, match="no value in common"):
        normalized({"oneOf": [tree(5), tree(5)]})
    links = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}", "properties": {}} for n in range(2000)}
    with pytest.raises(InvalidRequest):
        relaxed({"$ref": "#/$defs/d0", "$defs": {**links, "d2000": {}}})


def test_types_of_python_are_accepted_except_sets(engine: Engine) -> None:
    refused = {
        name for name, schema in python_types().items() if schema_corpus.refusal(engine, schema)
    }
    assert refused == {"set", "frozenset"}


def test_schemas_of_libraries_are_accepted_and_their_texts_valid(engine: Engine) -> None:
    pytest.importorskip("openai")
    schemas = {**python_types(), **INSTALLED["openai shared"](), **INSTALLED["openai chat"]()}
    accepted = {n: s for n, s in schemas.items() if schema_corpus.refusal(engine, s) is None}
    assert len(accepted) >= 0.94 * len(schemas)  # 170 of 181
    complete = list(schema_corpus.walks(engine, accepted, 120))
    assert len(complete) == 120
    assert [found for found in complete if found[2] is not None] == []


def test_texts_of_schemas_of_any_keywords_are_valid(engine: Engine) -> None:
    """Without what jsonschema judges in another way: multiples of fractions, OpenAPI's null."""
    rng, texts = random.Random(5), 0
    walker = schema_corpus.Walker(engine, rng)
    while texts < 150:
        schema = fuzz_constraints.schema(rng, 3)
        written = json.dumps(schema)
        if any(word in written for word in ("multipleOf", "nullable", "relative-json-pointer")):
            continue
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
            text = walker.text(schema)
        except (InvalidRequest, jsonschema.SchemaError):
            continue
        if text is not None:
            texts += 1
            assert schema_corpus.violation(schema, text) is None, (schema, text)
