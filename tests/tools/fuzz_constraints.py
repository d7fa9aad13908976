"""Random schemas, GBNF grammars and expressions, compiled as the server compiles them.

Each goes through a child process first, then, if the child compiled it, through this one, which
then follows a few random tokens. Prints what the children refused, died of, or took long for. A
death of this process, or one that hangs, is a fault.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from cllm.engine import Constraint, Engine, InvalidRequest, TooIntricate
from cllm.engine.constraints.constraint import Kind
from cllm.engine.constraints.json_formats import FORMATS
from cllm.models import demo_path

NUMBERS = (
    0, 1, -1, 2, 7, 10, 99, 1000, 2**31 - 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1,
    2**63, 2**64, 10**18, 10**30, 10**99, 10**100, 0.1, 0.5, 1e-7, 1e22, 1e30, 1e300, 5e-324,
    0.30000000000000004, 123456789012345.678,
)  # fmt: skip
COUNTS = (0, 1, 2, 3, 8, 100, 1000, 2**31 - 1, 2**31, -1, 1.0, True)
TEXTS = (
    "",
    "a",
    "ab",
    'q"',
    "\\",
    "雨",
    "\x00",
    "\x7f",
    "\ud800",
    "a" * 300,
    "#/$defs/a",
    "<|im_end|>",
)
TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
REFERENCES = ("#", "#/$defs/a", "#/$defs/b", "#/$defs/none", "#/properties/a", "other")
NAMES = ("a", "b", "c d", 'q"', "雨")
ATOMS = (
    "a", "b", ".", "[a-z]", "[^a]", r"\d", r"\w", r"\s", r"\b", "^", "$", "(?i)", "(?=a)", r"\p{L}",
    r"\x41", "雨", r"\\", '"', "/", "[", "(", ")", r"[\]]", "(?:)", "(?P<n>a)", "a|b", r"\u0041",
)  # fmt: skip
REPEATS = ("*", "+", "?", "{2}", "{0,3}", "{3,}", "{1000}", "{0,100000}", "*?", "++", "{5,2}")


def number(rng: random.Random) -> float:
    """Any, near an edge more often than not."""
    value = rng.choice(NUMBERS)
    value += rng.choice((0, 0, 0, 1, -1)) if isinstance(value, int) else 0
    return rng.choice((value, -value))


def value(rng: random.Random, depth: int) -> Any:
    """Any JSON."""
    kind = rng.randrange(6 if depth > 0 else 4)
    if kind == 0:
        return number(rng)
    if kind == 1:
        return rng.choice(TEXTS)
    if kind in (2, 3):
        return rng.choice((None, True, False))
    inner = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return inner if kind == 4 else dict(zip(NAMES, inner, strict=False))


def schema(rng: random.Random, depth: int) -> Any:
    """A schema of some keywords, most of them fitting its type."""
    if rng.random() < 0.05:
        return rng.choice(
            (True, False, {}, 5, "a", None) if rng.random() < 0.3 else (True, False, {})
        )

    def inner() -> Any:
        return schema(rng, depth - 1)

    def named() -> Any:
        return {name: inner() for name in rng.sample(NAMES, rng.randrange(4))}

    def several() -> Any:
        return [inner() for _ in range(rng.randrange(4))]

    makers: dict[str, Callable[[], Any]] = {
        "minimum": lambda: number(rng), "maximum": lambda: number(rng),
        "exclusiveMinimum": lambda: number(rng), "exclusiveMaximum": lambda: number(rng),
        "multipleOf": lambda: rng.choice((1, 2, 3, 7, 0.1, 0.01, 1e-7, 9999, 0, -1, number(rng))),
        "minLength": lambda: rng.choice(COUNTS), "maxLength": lambda: rng.choice(COUNTS),
        "pattern": lambda: regex(rng, 3), "format": lambda: rng.choice((*FORMATS, "odd")),
        "minItems": lambda: rng.choice(COUNTS), "maxItems": lambda: rng.choice(COUNTS),
        "const": lambda: value(rng, 2),
        "enum": lambda: [value(rng, 2) for _ in range(rng.randrange(5))],
        "required": lambda: rng.sample(NAMES, rng.randrange(3)),
        "minProperties": lambda: rng.choice(COUNTS), "maxProperties": lambda: rng.choice(COUNTS),
        "$ref": lambda: rng.choice(REFERENCES), "nullable": lambda: rng.choice((True, False, None)),
        "uniqueItems": lambda: rng.random() < 0.2,
    }  # fmt: skip
    if depth > 0:
        makers |= {
            "items": rng.choice((inner, several)), "propertyNames": inner, "not": inner,
            "unevaluatedProperties": inner, "additionalProperties": inner, "properties": named,
            "patternProperties": lambda: {regex(rng, 2): inner()}, "prefixItems": several,
            "anyOf": several, "oneOf": several, "allOf": several, "$defs": named,
        }  # fmt: skip
    by_type = {
        "string": ("minLength", "maxLength", "pattern", "format"),
        "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        "array": ("items", "prefixItems", "minItems", "maxItems"),
        "object": ("properties", "required", "additionalProperties", "patternProperties", "$defs"),
    }
    made: dict[str, Any] = {}
    if rng.random() < 0.8:
        kinds = (
            rng.choices(TYPES[:-1], k=rng.choice((1, 1, 1, 2))) if rng.random() < 0.99 else ["any"]
        )
        made["type"] = kinds[0] if len(kinds) == 1 else kinds
        fitting = [key for kind in kinds for key in by_type.get(kind, ()) if key in makers]
        for key in rng.sample(fitting, min(len(fitting), rng.randrange(4))):
            made[key] = makers[key]()
    for key in rng.sample(list(makers), rng.choice((0, 0, 0, 1, 1, 2)) + (not made)):
        made[key] = makers[key]()
    return made


def regex(rng: random.Random, depth: int) -> str:
    """An expression, not always a valid one."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        part = (
            f"({regex(rng, depth - 1)})" if depth > 0 and rng.random() < 0.4 else rng.choice(ATOMS)
        )
        parts.append(part + (rng.choice(REPEATS) if rng.random() < 0.3 else ""))
    return rng.choice(("", "|")).join(parts)


def gbnf(rng: random.Random, _: int) -> str:
    """A grammar of a few rules that refer to each other, also from the left."""
    names = ["root", *(f"r{i}" for i in range(rng.randrange(5)))]
    lines = []
    for name in names:
        parts = []
        for _ in range(rng.randint(1, 5)):
            atom = rng.choice(
                [*names, '"a"', '"b c"', "[a-z]", "[^x]", '"\\x41"', '"\\u00e9"', '""', "|", "(",
                 ")", ".", '"\\""', "[\\]]", "<think>", "%json {}", "undefined", "# note", "{",
                 "(" + names[-1] + ")"]
            )  # fmt: skip
            parts.append(atom + (rng.choice(REPEATS[:8]) if rng.random() < 0.3 else ""))
        lines.append(f"{name} ::= {' '.join(parts)}")
    return "\n".join(lines)


def constraints(seed: int, count: int) -> Iterator[tuple[Kind, Any]]:
    """`count` of them, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.choice(("json_schema", "json_schema", "json_schema", "gbnf", "regex"))
        if kind == "json_schema":
            made = schema(rng, 3)
            if isinstance(made, dict) and rng.random() < 0.3:
                made["$defs"] = {"a": schema(rng, 2), "b": schema(rng, 2)}
            yield "json_schema", made
        elif kind == "gbnf":
            yield "gbnf", gbnf(rng, 2)
        else:
            yield "regex", regex(rng, 4)


def tried(engine: Engine, kind: Kind, source: Any, rng: random.Random) -> str:
    """What came of it, in a few words."""
    try:
        constraint = Constraint(kind, json.dumps(source) if kind == "json_schema" else source)
        guide = engine._grammars.guide(constraint)
    except InvalidRequest as error:
        for word in ("crashed", "takes more than", "needs more than", "failed, ", "killed"):
            if word in error.expected and "simplify it" in error.expected:
                return f"child: {word}"
        return "refused"
    try:
        for _ in range(4):
            allowed = (~guide.forbidden()).nonzero()[0].tolist()
            ends = set(engine._vocab.eog_tokens().tolist())
            if guide.ended or not (allowed := [token for token in allowed if token not in ends]):
                break
            guide.accept(rng.choice(allowed), 8)
    except TooIntricate:
        return "compiled, then too intricate"
    return "compiled"


def main() -> None:
    """Compile as many as wanted and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=float, default=2.0, help="seconds from which one is printed")
    given = parser.parse_args()
    outcomes: Counter[str] = Counter()
    with Engine.load(demo_path(), parallel=1, ctx_size=256) as engine:
        rng, began = random.Random(given.seed), time.monotonic()
        for number, (kind, source) in enumerate(constraints(given.seed, given.count)):
            before = time.monotonic()
            outcome = tried(engine, kind, source, rng)
            took = time.monotonic() - before
            outcomes[f"{kind}: {outcome}"] += 1
            if outcome.startswith("child") or took > given.slow:
                print(f"{number} {kind} {outcome} {took:.1f} s {source!r}"[:2000], flush=True)
            if number % 1000 == 999:
                print(f"{number + 1} in {time.monotonic() - began:.0f} s", flush=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7} {outcome}")


if __name__ == "__main__":
    main()
