"""Random schemas: every text is valid, also next to unconstrained sequences."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from cllm.engine import Constraint, Engine, Generation, SamplingParams
from cllm.engine.constraints.constraint import json_rule
from cllm.models import demo_path
from tests.engine.engine_helpers import WAIT, Loader, finished

Schema = dict[str, Any]

SCHEMAS = 200
BATCH = 20
TOKENS = 400
ENDINGS = ['"', "}", "]", '"}', '"]', '", "', ","]
"""Made likelier, and digits less likely, so that a model which says anything comes to an end."""


def schema(rng: random.Random, depth: int) -> Schema:
    """Any schema of at most `depth` levels; texts and lists are short."""
    inner = [_object, _array, _either] if depth else []
    make = rng.choice([_string, _number, _choice, _string, _number, _choice, *inner, *inner])
    return make(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["id", "name", "größe", "a b", 'quo"te', "list", "x1", "back\\slash"], 4)
    properties = {name: schema(rng, depth) for name in names[: rng.randint(0, 4)]}
    required = [name for name in properties if rng.random() < 0.7]
    return {
        "type": "object",
        "description": "what a client may say about it",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    made: Schema = {"type": "array", "minItems": least, "maxItems": least + rng.randint(0, 2)}
    if rng.random() < 0.3:
        made["prefixItems"] = [schema(rng, depth) for _ in range(rng.randint(1, 2))]
    return {**made, "items": schema(rng, depth)}


def _either(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [schema(rng, depth) for _ in range(rng.randint(1, 3))]}


def _string(rng: random.Random, _depth: int) -> Schema:
    least = rng.randint(0, 3)
    return rng.choice(
        [
            {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 8)},
            {"type": "string", "pattern": "^[a-z]{2,6}$"},
            {"type": "string", "pattern": r"^\d{1,3}-(foo|bär)$"},
            {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time", "date-time"])},
        ]
    )


def _number(rng: random.Random, _depth: int) -> Schema:
    least = rng.randint(-1000, 1000)
    return rng.choice(
        [
            {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 500)},
            {"type": "integer", "exclusiveMinimum": least, "exclusiveMaximum": least + 10},
            {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": rng.randint(2, 9)},
            {"type": "number", "minimum": least / 8, "maximum": least / 8 + rng.random() * 10},
        ]
    )


def _choice(rng: random.Random, _depth: int) -> Schema:
    return rng.choice(
        [
            {"enum": rng.sample(["red", "grün", 5, 2.5, None, True, {"a": [1]}, "a\nb"], 3)},
            {"const": rng.choice(["fixed", 17, False])},
            {"type": "boolean"},
            {"type": ["null", "boolean"]},
        ]
    )


def shared(rng: random.Random) -> Schema:
    """A schema that names a part of itself, as those that libraries write do."""
    return {
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/part"}, "second": {"$ref": "#/$defs/part"}},
        "required": ["first", "second"],
        "additionalProperties": False,
        "$defs": {"part": schema(rng, 1)},
    }


def eager_to_end(engine: Engine) -> dict[int, float]:
    spelled = [engine.tokenize(text, add_special=False) for text in ENDINGS]
    eos = engine.info().eos_token
    assert eos is not None
    pieces = engine.pieces(range(engine.info().vocab_size))
    digits = {token: -16.0 for token, piece in enumerate(pieces) if piece.isdigit()}
    return digits | {eos: 16.0} | {tokens[0]: 16.0 for tokens in spelled if len(tokens) == 1}


def checked(text: str, wanted: Schema) -> None:
    validator = jsonschema.Draft202012Validator(
        wanted, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(json.loads(text))


@pytest.fixture(scope="module")
def storyteller() -> Iterator[Engine]:
    with Engine.load(demo_path(), parallel=4, ctx_size=512) as loaded:
        yield loaded


@pytest.mark.parametrize("batch", range(SCHEMAS // BATCH))
def test_texts_of_random_schemas_are_valid(engine: Engine, storyteller: Engine, batch: int) -> None:
    either = engine if batch % 2 else storyteller
    rng = random.Random(batch)
    bias = eager_to_end(either)
    free = SamplingParams(max_tokens=40, seed=1, temperature=1.2, ignore_eos=True)
    alone = finished(engine.submit("Once", free)).text
    running: list[tuple[Schema, Generation]] = []
    beside: list[Generation] = []
    for index in range(BATCH):
        wanted = shared(rng) if index % 5 == 4 else schema(rng, 2)
        params = SamplingParams(
            max_tokens=TOKENS,
            seed=index,
            temperature=rng.choice([0.0, 0.8, 1.5]),
            constraint=Constraint("json_schema", wanted),
            logit_bias=bias,
            record_tokens=index % 2 == 0,
            frequency_penalty=0.3 * (index % 3 == 0),
        )
        running.append((wanted, either.submit("Once", params)))
        if either is engine and index % 5 == 0:
            beside.append(engine.submit("Once", free))
    for wanted, generation in running:
        done = generation.result(WAIT)
        assert done.finish_reason == "stop", (wanted, done.text)
        checked(done.text, wanted)
        pieces = b"".join(record.piece for record in generation.take_tokens()).decode()
        assert pieces in ("", done.text)
    assert {finished(generation).text for generation in beside} <= {alone}


def test_arguments_of_a_random_tool_are_valid(engine: Engine) -> None:
    rng = random.Random(7)
    for _ in range(10):
        tools = {f"tool_{i}": _object(rng, 1) for i in range(4)}
        calls = " | ".join(
            f'"{name}(" {json_rule(parameters)} ")"' for name, parameters in tools.items()
        )
        params = SamplingParams(
            max_tokens=TOKENS,
            seed=rng.randrange(1000),
            constraint=Constraint("lark", f"start: {calls}"),
            logit_bias=eager_to_end(engine),
        )
        done = finished(engine.submit("Call", params))
        name, _, arguments = done.text.removesuffix(")").partition("(")
        checked(arguments, tools[name])


def test_a_schema_may_name_itself(load: Loader) -> None:
    engine = load(parallel=4, ctx_size=512)
    properties: Schema = {
        "name": {"type": "string", "maxLength": 5},
        "parts": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    }
    tree = {
        "type": "object",
        "properties": properties,
        "required": ["name"],
        "additionalProperties": False,
    }
    constraint, bias = Constraint("json_schema", tree), eager_to_end(engine)
    ended = 0
    for seed in range(10):
        params = SamplingParams(max_tokens=300, seed=seed, constraint=constraint, logit_bias=bias)
        done = finished(engine.submit("Tree", params))
        if done.finish_reason == "stop":
            checked(done.text, tree)
            ended += 1
    assert ended > 0
