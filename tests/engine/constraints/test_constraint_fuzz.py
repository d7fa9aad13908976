"""Random constraints: each is compiled or refused, and none kills the server."""

from __future__ import annotations

import random

from cllm.engine import Engine
from tests.tools import fuzz_constraints as fuzz


def test_random_constraints_are_compiled_or_refused(engine: Engine) -> None:
    rng, outcomes = random.Random(1), set[str]()
    for kind, source in fuzz.constraints(seed=11, count=250):
        outcomes.add(f"{kind}: {fuzz.tried(engine, kind, source, rng)}")
    for kind in ("json_schema", "gbnf", "regex"):
        assert {f"{kind}: compiled", f"{kind}: refused"} <= outcomes
    assert not {outcome for outcome in outcomes if "crashed" in outcome}
