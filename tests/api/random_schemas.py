"""Random JSON schemas that strict mode accepts; every answer ends soon with any model."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("city", "days", "units", "tags", "place", "note", "level", "is_open", "ümlaut", "a b")
WORDS = ("red", "green", "très bien", 'say "hi"', "a\\b", "雨", "", "null")


def random_object(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """An object of one to four properties, all of them required."""
    names = rng.sample(NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _random_schema(rng, depth - 1) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_integer, _number, _boolean, _enum, _text, _constant, _nullable]
    if depth > 0:
        return rng.choice([*kinds, _list, _choice, random_object])(rng, depth)
    return rng.choice(kinds)(rng, depth)


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(-100, 100)
    return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 50)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    # One of a few: a model that only tells stories never ends a number by itself.
    return {"type": "number", "enum": [rng.randint(-9, 9) / 4, 1.5, -2e3]}


def _boolean(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "boolean"}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "enum": rng.sample(WORDS, rng.randint(1, 4))}


def _text(rng: random.Random, depth: int) -> dict[str, Any]:
    forms: list[dict[str, Any]] = [
        {"maxLength": 8}, {"pattern": "^[a-z]{2,4}$"}, {"format": "date"},
    ]  # fmt: skip
    return {"type": "string", **rng.choice(forms)}


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice([*WORDS, 7, True, None])}


def _nullable(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": 0, "maximum": 9}


def _list(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "items": _random_schema(rng, depth - 1), "maxItems": 3}


def _choice(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_random_schema(rng, 0), _integer(rng, 0)]}
