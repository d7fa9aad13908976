"""Random constraints, compiled as the server does: each is compiled or refused, and none kills."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

from cllm.engine import Engine

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_constraints.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_constraints", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_constraints_are_compiled_or_refused(engine: Engine, fuzz: ModuleType) -> None:
    rng, outcomes = random.Random(1), set[str]()
    for kind, source in fuzz.constraints(seed=11, count=250):
        outcomes.add(f"{kind}: {fuzz.tried(engine, kind, source, rng)}")
    for kind in ("json_schema", "gbnf", "regex"):
        assert {f"{kind}: compiled", f"{kind}: refused"} <= outcomes
    assert not {outcome for outcome in outcomes if "crashed" in outcome}
