"""Schemas that programs write: how many are accepted, and whether their texts are valid.

The schemas are read from installed packages: pydantic's types, the models of openai, anthropic and
langchain-core, the meta-schemas of JSON Schema and OpenAPI. With --node DIR, npm installs zod and
MCP servers there, and their schemas are read too. Each schema is compiled as the server compiles
it. Random texts, token by token through the masks, are then checked with jsonschema.

    python -m tests.tools.schema_corpus --texts 1000
    python -m tests.tools.schema_corpus --node /tmp/node --texts 1000
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from cllm.engine import Constraint, Engine, InvalidRequest, TooIntricate
from cllm.models import demo_path
from tests.tools.schema_sources import INSTALLED, node_schemas

ENDINGS = frozenset(['"', "}", "]", '"}', '"]', '"}}', '"}]', "0", "1", "true", "false", "null"])
"""Chosen more often, so that a random text comes to an end."""

_LONG = 150  # tokens after which a text ends where it may
_MOST = 600

Schema = Any


class Walker:
    """Random texts of one engine's vocabulary."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self._engine = engine
        self._rng = rng
        self._ends = set(engine._vocab.eog_tokens().tolist())
        pieces = engine.pieces(range(engine.info().vocab_size))
        self._pieces = pieces
        self._endings = {t for t, piece in enumerate(pieces) if piece.decode("latin-1") in ENDINGS}

    def text(self, schema: Schema) -> str | None:
        """A text that the schema's masks allow; None: it did not end. Raises InvalidRequest."""
        rng, made = self._rng, b""
        guide = self._engine._grammars.guide(Constraint("json_schema", schema))
        try:
            for step in range(_MOST):
                if guide.ended:
                    return made.decode()
                allowed = set(np.flatnonzero(~guide.forbidden()).tolist())
                if allowed & self._ends and (step > _LONG or rng.random() < 0.5):
                    return made.decode()
                allowed -= self._ends
                if not allowed:
                    return made.decode()
                ending = allowed & self._endings
                often = ending and (step > _LONG or rng.random() < 0.3)
                token = rng.choice(sorted(ending if often else allowed))
                guide.accept(token)
                made += self._pieces[token]
        except TooIntricate:
            return None
        return None


def violation(schema: Schema, text: str) -> str | None:
    """How a text breaks its schema, its formats included; None: it does not."""
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    return next((error.message for error in validator.iter_errors(value)), None)


def refusal(engine: Engine, schema: Schema) -> str | None:
    """Why it is refused; None: it is accepted."""
    try:
        engine.check_constraint(Constraint("json_schema", schema))
    except InvalidRequest as error:
        return str(error)
    return None


def walks(
    engine: Engine, schemas: Mapping[str, Schema], texts: int, seed: int = 0
) -> Iterator[tuple[str, str, str | None]]:
    """Random complete texts, `texts` in all: the schema's name, the text, how it breaks it."""
    walker, names = Walker(engine, random.Random(seed)), list(schemas)
    complete = 0
    for turn in range(20 * texts):
        name = names[turn % len(names)]
        text = walker.text(schemas[name])
        if text is not None:
            complete += 1
            yield name, text, violation(schemas[name], text)
            if complete == texts:
                return


def report(
    engine: Engine, source: str, read: Callable[[], Mapping[str, Schema]], texts: int
) -> int:
    """Print what came of a source's schemas; return the number of violations."""
    schemas = read()
    began, slowest = time.monotonic(), (0.0, "")
    accepted = {}
    for name, schema in schemas.items():
        before = time.monotonic()
        why = refusal(engine, schema)
        slowest = max(slowest, (time.monotonic() - before, name))
        if why is None:
            accepted[name] = schema
        else:
            print(f"  refused {name}: {why}"[:300])
    found = complete = 0
    for name, text, broken in walks(engine, accepted, texts) if accepted else ():
        complete += 1
        if broken is not None:
            found += 1
            print(f"  VIOLATED {name}: {broken[:200]}: {text[:300]}")
    took = time.monotonic() - began
    print(
        f"{source}: {len(accepted)} of {len(schemas)} accepted, {complete} texts, {found} violated"
        f"; {took:.0f} s, slowest {slowest[0]:.2f} s {slowest[1]}",
        flush=True,
    )
    return found


def main() -> None:
    """Compile all, walk through those accepted, and print the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=200, help="random complete texts per source")
    parser.add_argument("--node", type=Path, help="folder in which npm installs packages")
    parser.add_argument("--only", help="one source")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sources = dict(INSTALLED)
    if given.node is not None:
        sources |= node_schemas(given.node)
    with Engine.load(demo_path(), parallel=1, ctx_size=256) as engine:
        found = sum(
            report(engine, name, read, given.texts)
            for name, read in sources.items()
            if given.only in (None, name)
        )
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
